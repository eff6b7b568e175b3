from fedsim.training import ClientRule, Finished, Local, LocalPlan, Phase, Sets, Step

from .flower import Strategy
from .hooks import Hooks, Precision
from .measurable import Measurable
from .options import Count, CountOrZero, Decay, NonNegative, Option, Positive, PositiveShare, Share
from .participants import draw_unseen
from .updates import ClientUpdate, Received

__all__ = [
    "ClientRule",
    "ClientUpdate",
    "Count",
    "CountOrZero",
    "Decay",
    "Finished",
    "Hooks",
    "Local",
    "LocalPlan",
    "Measurable",
    "NonNegative",
    "Option",
    "Phase",
    "Positive",
    "PositiveShare",
    "Precision",
    "Received",
    "Sets",
    "Share",
    "Step",
    "Strategy",
    "draw_unseen",
]
