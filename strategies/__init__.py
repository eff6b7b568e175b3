"""Server strategies: ``STRATEGIES`` maps a name to its class, one short file each, imported when it is used."""

from typing import TYPE_CHECKING, Any

from fedsim.lazy import LazyTable

if TYPE_CHECKING:
    from fedsim.strategy import Strategy

STRATEGIES: "LazyTable[type[Strategy]]" = LazyTable(
    {
        "fedavg": "strategies.fedavg:FedAvg",
        "full": "strategies.fedavg:FedAvg",
        "local": "strategies.local:Local",
        "fedper": "strategies.layer_set:FedPer",
        "lg_fedavg": "strategies.layer_set:LgFedAvg",
        "fedbn": "strategies.layer_set:FedBn",
        "layer_set": "strategies.layer_set:LayerSet",
        "layer_cycle": "strategies.layer_cycle:LayerCycle",
        "fedprox": "strategies.fedprox:FedProx",
        "fedavgm": "strategies.fedopt:FedAvgM",
        "fedadam": "strategies.fedopt:FedAdam",
        "fedyogi": "strategies.fedopt:FedYogi",
        "fedadagrad": "strategies.fedopt:FedAdagrad",
        "fedrep": "strategies.fedrep:FedRep",
        "fedbabu": "strategies.fedbabu:FedBabu",
        "fedalt": "strategies.fedalt:FedAlt",
        "fedsim": "strategies.fedalt:FedSim",
        "fedpart": "strategies.fedpart:FedPart",
        "fedlama": "strategies.fedlama:FedLama",
        "fedluar": "strategies.fedluar:FedLuar",
        "fedlp": "strategies.fedlp:FedLp",
        "drift_gated": "strategies.drift_gated:DriftGated",
        "llmc": "strategies.llmc:Llmc",
        "scaffold": "strategies.scaffold:Scaffold",
        "ditto": "strategies.ditto:Ditto",
        "apfl": "strategies.apfl:Apfl",
        "pfedme": "strategies.pfedme:PFedMe",
        "fedrod": "strategies.fedrod:FedRod",
        "fedala": "strategies.fedala:FedAla",
        "fedgucci": "strategies.fedgucci:FedGucci",
        "fedselect": "strategies.fedselect:FedSelect",
        "fedcac": "strategies.fedcac:FedCac",
        "fedas": "strategies.fedas:FedAs",
        "floco": "strategies.floco:Floco",
        "pfedla": "strategies.pfedla:PFedLA",
        "heurpfedla": "strategies.pfedla:HeurPFedLA",
        "fedma": "strategies.fedma:FedMa",
        "matched_average": "strategies.rebasin:MatchedAverage",
        "hierarchical_average": "strategies.rebasin:HierarchicalAverage",
        "barrier_gated": "strategies.barrier_gated:BarrierGated",
    }
)
__all__ = ["STRATEGIES", *sorted({place.name for place in STRATEGIES.places.values()})]


def __getattr__(name: str) -> Any:
    """Import a class of the table by its own name, as in ``from strategies import FedProx``."""
    return STRATEGIES.attribute(name)
