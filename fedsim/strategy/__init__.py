"""What a method is: the server's hooks, the clients' rule, and what travels between them."""

from fedsim.strategy.strategy import (
    ClientRule,
    ClientUpdate,
    Finished,
    Local,
    LocalPlan,
    Measurable,
    Phase,
    Precision,
    Received,
    Sets,
    Step,
    Strategy,
    draw_unseen,
)

__all__ = [
    "ClientRule",
    "ClientUpdate",
    "Finished",
    "Local",
    "LocalPlan",
    "Measurable",
    "Phase",
    "Precision",
    "Received",
    "Sets",
    "Step",
    "Strategy",
    "draw_unseen",
]
