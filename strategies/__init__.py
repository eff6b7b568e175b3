"""Server strategies: ``STRATEGIES`` maps a name to its class, one short file each."""

from fedsim.strategy import Strategy
from strategies.full import Full
from strategies.layer_cycle import LayerCycle
from strategies.layer_set import LayerSet
from strategies.local import Local

__all__ = ["STRATEGIES", "Full", "LayerCycle", "LayerSet", "Local"]

STRATEGIES: dict[str, type[Strategy]] = {
    "full": Full,
    "local": Local,
    "layer_set": LayerSet,
    "layer_cycle": LayerCycle,
}
