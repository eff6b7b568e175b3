"""Which of Flower's strategies are rules, by name, and why the others are none; Flower is imported when one is used."""

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from fedsim.lazy import LazyTable, Place

if TYPE_CHECKING:
    from fedsim.strategy import Strategy

PREFIX = "flwr:"
NO_RULES = {
    "FedProx": "its term is in the clients' loss; use 'fedprox', which has it",
    "QFedAvg": "it needs each client's loss of the model as it came, which clients do not send; use another rule",
    "FedXgbBagging": "it adds trees, which have no layers; use another rule",
    "FedXgbCyclic": "it passes trees on, which have no layers; use another rule",
    "DifferentialPrivacyClientSideAdaptiveClipping": "it wraps another strategy; use a rule that wraps none",
    "DifferentialPrivacyClientSideFixedClipping": "it wraps another strategy; use a rule that wraps none",
    "DifferentialPrivacyServerSideAdaptiveClipping": "it wraps another strategy; use a rule that wraps none",
    "DifferentialPrivacyServerSideFixedClipping": "it wraps another strategy; use a rule that wraps none",
}


@dataclass(frozen=True)
class FlowerPlace(Place):
    """A strategy of Flower, which becomes one of fedsim's as it is imported."""

    def load(self) -> Any:
        """Return a strategy around it."""
        return Place("fedsim.strategy.flower_rule", "strategy_of").load()(super().load(), self.docstring())

    def docstring(self) -> str:
        """Return the first sentence of Flower's docstring, and its paper."""
        text = super().docstring()
        paper = re.search(r"arxiv\.org/\w+/(\d+\.\d+)", text)
        source = f"arXiv {paper[1]}, as in Flower" if paper else "Flower"
        return f"Average one layer group by Flower's {text.partition(chr(10))[0]}\n\nReferences\n----------\n{source}."


FLOWER_RULES: "LazyTable[Callable[..., Strategy]]" = LazyTable(
    {
        PREFIX + name: FlowerPlace(f"flwr.serverapp.strategy.{name.lower()}", name)
        for name in (
            "Bulyan",
            "FedAdagrad",
            "FedAdam",
            "FedAvg",
            "FedAvgM",
            "FedMedian",
            "FedTrimmedAvg",
            "FedYogi",
            "Krum",
            "MultiKrum",
        )
    }
)
