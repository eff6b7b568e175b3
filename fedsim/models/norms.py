"""Types of normalisation modules."""

from torch import nn
from torch.nn.modules.batchnorm import _NormBase

# Batch and instance normalisation of any dimension, which may have running statistics; torch has no public name for it.
StatisticsNorm = _NormBase
NORM_TYPES = (StatisticsNorm, nn.GroupNorm, nn.LayerNorm, nn.RMSNorm)


def has_statistics(model: nn.Module) -> bool:
    """Whether a model has running statistics."""
    return any(isinstance(module, StatisticsNorm) and module.running_mean is not None for module in model.modules())


def counter_keys(model: nn.Module) -> frozenset[str]:
    """Return the keys of the batches that running statistics have seen, which no output depends on."""
    return frozenset(
        f"{name}.num_batches_tracked" if name else "num_batches_tracked"
        for name, module in model.named_modules()
        if isinstance(module, StatisticsNorm) and module.num_batches_tracked is not None
    )
