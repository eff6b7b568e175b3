from fedsim.training import ClientRule, Finished, Local, LocalPlan, Phase, Sets, Step

from .clustered import Clustered
from .flower import Strategy
from .hooks import Hooks, Precision
from .measurable import Bounds, ClientBarrier, Measurable, bounds_of
from .options import Count, CountOrZero, Decay, NonNegative, Option, Positive, PositiveShare, Share
from .participants import draw_unseen
from .probes import PROBE, PROBING, ProbeRule
from .updates import ClientUpdate, Received

__all__ = [
    "PROBE",
    "PROBING",
    "Bounds",
    "ClientBarrier",
    "ClientRule",
    "ClientUpdate",
    "Clustered",
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
    "ProbeRule",
    "Received",
    "Sets",
    "Share",
    "Step",
    "Strategy",
    "bounds_of",
    "draw_unseen",
]
