from .augmentation import Augmentation
from .buffers import recompute_buffers_
from .choice import choose_cohort, cohort_problem
from .cohort import LocalTask, train_cohort
from .context import Local, Network, Sets, Step
from .local import train_
from .losses import Loss, loss_of
from .plan import LocalPlan, Passes, Phase, Training
from .rule import ClientRule, Finished, Ruled
from .schedule import RoundOf
from .settings import SGD, LocalSettings

__all__ = [
    "SGD",
    "Augmentation",
    "ClientRule",
    "Finished",
    "Local",
    "LocalPlan",
    "LocalSettings",
    "LocalTask",
    "Loss",
    "Network",
    "Passes",
    "Phase",
    "RoundOf",
    "Ruled",
    "Sets",
    "Step",
    "Training",
    "choose_cohort",
    "cohort_problem",
    "loss_of",
    "recompute_buffers_",
    "train_",
    "train_cohort",
]
