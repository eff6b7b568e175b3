"""What a method's code keeps for the next round where no checkpoint has it."""

from fedsim.strategy.hooks import Hooks
from fedsim.training import ClientRule
from fedsim.training.changes import changed_by

SAVED = {"memory", "global_model", "clients"}  # or set again in each round
# Hooks that are asked more than once, also before the run, and may leave something for a later hook of the round.
ASKED = ("shared", "shared_by", "kept", "local_plan", "for_client", "sets_for")
OF_ROUNDS = ("start", "draw", "loss", "gradient", "finish", "network", "personalised")  # hooks of a rule in a round


def forgotten_by(strategy: type[Hooks]) -> str | None:
    """Return what the code of a strategy changes that the next round would need and no checkpoint has.

    That is an attribute other than the memory which `aggregate`, the last hook of a round, changes, or which an earlier
    hook changes by its old value, such as a counter. None if there is no such attribute, the source is not known, or
    the class writes its own state.
    """
    if strategy.state is not Hooks.state:
        return None
    for hook in ("aggregate", *ASKED):
        for name in changed_by(strategy, hook, Hooks, only_updates=hook in ASKED):
            if name not in SAVED:
                return f"{strategy.__name__}.{hook} changes self.{name}, which no checkpoint has"
    return None


def kept_of_rounds(strategy: type[Hooks]) -> str | None:
    """Return what a strategy keeps of the number of rounds, on which its numbers depend then; None if it does not."""
    kept = next(changed_by(strategy, "check_rounds", Hooks), None)
    return kept and f"{strategy.__name__}.check_rounds sets self.{kept}, and the number of rounds differs"


def check_stateless(rule: type[ClientRule]) -> None:
    """Check that no hook of a rule changes the rule: one object serves all clients, and other processes have others.

    Raises
    ------
    ValueError
        If the source of one does.
    """
    for hook in OF_ROUNDS:
        for name in changed_by(rule, hook, ClientRule):
            raise ValueError(
                f"{rule.__name__}.{hook} changes self.{name}, and all clients share one rule; let start return what it "
                "needs among local.sets and finish in Finished.kept, or set it in prepare"
            )
