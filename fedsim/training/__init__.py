"""Local training of one client, or of many at once: pure functions of models, data and random streams.

Imports torch and NumPy only, so that it also runs where neither Flower nor Ray is.
"""

from fedsim.training.augmentation import Augmentation
from fedsim.training.buffers import recompute_buffers_
from fedsim.training.choice import choose_cohort, cohort_problem
from fedsim.training.cohort import LocalTask, train_cohort
from fedsim.training.local import train_
from fedsim.training.plan import LocalPlan, Passes, Phase, Training
from fedsim.training.rule import ClientRule, Finished, Local, Network, Ruled, Sets, Step
from fedsim.training.sgd import SGD

__all__ = [
    "SGD",
    "Augmentation",
    "ClientRule",
    "Finished",
    "Local",
    "LocalPlan",
    "LocalTask",
    "Network",
    "Passes",
    "Phase",
    "Ruled",
    "Sets",
    "Step",
    "Training",
    "choose_cohort",
    "cohort_problem",
    "recompute_buffers_",
    "train_",
    "train_cohort",
]
