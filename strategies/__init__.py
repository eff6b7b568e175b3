"""Server strategies, one short file each: ``STRATEGIES`` maps names to classes, ``NAMES`` has those of the papers."""

from typing import TYPE_CHECKING, Any

from fedsim.lazy import LazyTable, Named, Place

if TYPE_CHECKING:
    from fedsim.strategy import Strategy

STRATEGIES: "LazyTable[type[Strategy]]" = LazyTable(
    {
        "full": "strategies.fedavg:FedAvg",
        "local": "strategies.local:Local",
        "layer_set": "strategies.layer_set:LayerSet",
        "layer_cycle": "strategies.layer_cycle:LayerCycle",
        "fedprox": "strategies.fedprox:FedProx",
        "fedavgm": "strategies.fedopt:FedAvgM",
        "fedadam": "strategies.fedopt:FedAdam",
        "fedyogi": "strategies.fedopt:FedYogi",
        "fedadagrad": "strategies.fedopt:FedAdagrad",
        "fednova": "strategies.fednova:FedNova",
        "fedexp": "strategies.fedexp:FedExp",
        "fedlws": "strategies.fedlws:FedLws",
        "fedawa": "strategies.fedawa:FedAwa",
        "fedlaw": "strategies.fedlaw:FedLaw",
        "elastic": "strategies.elastic:Elastic",
        "feddyn": "strategies.feddyn:FedDyn",
        "moon": "strategies.moon:Moon",
        "fedntd": "strategies.label_skew:FedNtd",
        "fedlc": "strategies.label_skew:FedLc",
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
        "perfedavg": "strategies.perfedavg:PerFedAvg",
        "fedrod": "strategies.fedrod:FedRod",
        "fedala": "strategies.fedala:FedAla",
        "fedgucci": "strategies.fedgucci:FedGucci",
        "fedselect": "strategies.fedselect:FedSelect",
        "flayer": "strategies.flayer:Flayer",
        "feddbe": "strategies.feddbe:FedDbe",
        "pfedsim": "strategies.pfedsim:PFedSim",
        "fedproto": "strategies.fedproto:FedProto",
        "fedpac": "strategies.fedpac:FedPac",
        "fedcac": "strategies.fedcac:FedCac",
        "fedas": "strategies.fedas:FedAs",
        "floco": "strategies.floco:Floco",
        "pfedla": "strategies.pfedla:PFedLA",
        "heurpfedla": "strategies.pfedla:HeurPFedLA",
        "fedma": "strategies.fedma:FedMa",
        "matched_average": "strategies.rebasin:MatchedAverage",
        "hierarchical_average": "strategies.rebasin:HierarchicalAverage",
        "barrier_gated": "strategies.barrier_gated:BarrierGated",
        "barrier_mix": "strategies.barrier_mix:BarrierMix",
    }
)

# The names by which methods are shown, and another way to choose them.
NAMES: dict[str, Named] = {
    "FedAvg": Named("full"),
    "FedPer": Named("layer_set", {"shared": "body"}, Place("strategies.layer_set", "FedPer")),
    "LG-FedAvg": Named("layer_set", {"shared": "head"}, Place("strategies.layer_set", "LgFedAvg")),
    "FedBN": Named("layer_set", {"shared": "!norm"}, Place("strategies.layer_set", "FedBn")),
    "FedProx": Named("fedprox"),
    "FedAvgM": Named("fedavgm"),
    "FedAdam": Named("fedadam"),
    "FedYogi": Named("fedyogi"),
    "FedAdagrad": Named("fedadagrad"),
    "FedNova": Named("fednova"),
    "FedExP": Named("fedexp"),
    "FedLWS": Named("fedlws"),
    "FedAWA": Named("fedawa"),
    "FedLAW": Named("fedlaw"),
    "FedDyn": Named("feddyn"),
    "MOON": Named("moon"),
    "FedNTD": Named("fedntd"),
    "FedLC": Named("fedlc"),
    "FedRep": Named("fedrep"),
    "FedBABU": Named("fedbabu"),
    "FedAlt": Named("fedalt"),
    "FedSim": Named("fedsim"),
    "FedPart": Named("fedpart"),
    "FedLAMA": Named("fedlama"),
    "FedLUAR": Named("fedluar"),
    "FedLP": Named("fedlp"),
    "LLMC": Named("llmc"),
    "SCAFFOLD": Named("scaffold"),
    "Ditto": Named("ditto"),
    "APFL": Named("apfl"),
    "pFedMe": Named("pfedme"),
    "Per-FedAvg": Named("perfedavg"),
    "FedRoD": Named("fedrod"),
    "FedALA": Named("fedala"),
    "FedGuCci": Named("fedgucci"),
    "FedSelect": Named("fedselect"),
    "FLAYER": Named("flayer"),
    "FedDBE": Named("feddbe"),
    "pFedSim": Named("pfedsim"),
    "FedProto": Named("fedproto"),
    "FedPAC": Named("fedpac"),
    "FedCAC": Named("fedcac"),
    "FedAS": Named("fedas"),
    "Floco": Named("floco"),
    "pFedLA": Named("pfedla"),
    "HeurpFedLA": Named("heurpfedla"),
    "FedMA": Named("fedma"),
}
_CLASSES = STRATEGIES | LazyTable({name: each.place for name, each in NAMES.items() if each.place})
__all__ = ["NAMES", "STRATEGIES", *sorted({place.name for place in _CLASSES.places.values()})]


def __getattr__(name: str) -> Any:
    """Import a class of the tables by its own name, as in ``from strategies import FedProx``."""
    return _CLASSES.attribute(name)
