"""Server strategies: ``STRATEGIES`` maps a name to its class, one short file each."""

from fedsim.strategy import Strategy
from strategies.apfl import Apfl
from strategies.barrier_gated import BarrierGated
from strategies.ditto import Ditto
from strategies.drift_gated import DriftGated
from strategies.fedala import FedAla
from strategies.fedalt import FedAlt, FedSim
from strategies.fedas import FedAs
from strategies.fedavgm import FedAvgM
from strategies.fedbabu import FedBabu
from strategies.fedcac import FedCac
from strategies.fedgucci import FedGucci
from strategies.fedlama import FedLama
from strategies.fedlp import FedLp
from strategies.fedluar import FedLuar
from strategies.fedma import FedMa
from strategies.fedopt import FedAdagrad, FedAdam, FedYogi
from strategies.fedpart import FedPart
from strategies.fedprox import FedProx
from strategies.fedrep import FedRep
from strategies.fedrod import FedRod
from strategies.fedselect import FedSelect
from strategies.floco import Floco
from strategies.full import Full
from strategies.layer_cycle import LayerCycle
from strategies.layer_set import LayerSet
from strategies.llmc import Llmc
from strategies.local import Local
from strategies.pfedla import HeurPFedLA, PFedLA
from strategies.pfedme import PFedMe
from strategies.rebasin import HierarchicalAverage, MatchedAverage
from strategies.scaffold import Scaffold

__all__ = [
    "STRATEGIES",
    "Apfl",
    "BarrierGated",
    "Ditto",
    "DriftGated",
    "FedAdagrad",
    "FedAdam",
    "FedAla",
    "FedAlt",
    "FedAs",
    "FedAvgM",
    "FedBabu",
    "FedCac",
    "FedGucci",
    "FedLama",
    "FedLp",
    "FedLuar",
    "FedMa",
    "FedPart",
    "FedProx",
    "FedRep",
    "FedRod",
    "FedSelect",
    "FedSim",
    "FedYogi",
    "Floco",
    "Full",
    "HeurPFedLA",
    "HierarchicalAverage",
    "LayerCycle",
    "LayerSet",
    "Llmc",
    "Local",
    "MatchedAverage",
    "PFedLA",
    "PFedMe",
    "Scaffold",
]

STRATEGIES: dict[str, type[Strategy]] = {
    "full": Full,
    "local": Local,
    "layer_set": LayerSet,
    "layer_cycle": LayerCycle,
    "fedprox": FedProx,
    "fedavgm": FedAvgM,
    "fedadam": FedAdam,
    "fedyogi": FedYogi,
    "fedadagrad": FedAdagrad,
    "fedrep": FedRep,
    "fedbabu": FedBabu,
    "fedalt": FedAlt,
    "fedsim": FedSim,
    "fedpart": FedPart,
    "fedlama": FedLama,
    "fedluar": FedLuar,
    "fedlp": FedLp,
    "drift_gated": DriftGated,
    "llmc": Llmc,
    "scaffold": Scaffold,
    "ditto": Ditto,
    "apfl": Apfl,
    "pfedme": PFedMe,
    "fedrod": FedRod,
    "fedala": FedAla,
    "fedgucci": FedGucci,
    "fedselect": FedSelect,
    "fedcac": FedCac,
    "fedas": FedAs,
    "floco": Floco,
    "pfedla": PFedLA,
    "heurpfedla": HeurPFedLA,
    "fedma": FedMa,
    "matched_average": MatchedAverage,
    "hierarchical_average": HierarchicalAverage,
    "barrier_gated": BarrierGated,
}
