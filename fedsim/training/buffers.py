"""Running statistics, recomputed from data."""

import numpy as np
import torch
from torch import Tensor, nn

from fedsim.models.frozen import frozen_norms, train_mode_
from fedsim.models.norms import StatisticsNorm
from fedsim.training.batches import cut_batches
from fedsim.training.dropout import seeded_modules, set_streams_, streams


def recompute_buffers_(model: nn.Module, inputs: Tensor, batch_size: int) -> None:
    """Set batch normalisation's running statistics to the mean over batches of ``inputs``, in place.

    The weights do not change, and frozen statistics and models without any are left alone. Dropout is active as in
    training, with the same numbers each time.
    """
    fixed = {id(norm) for norm in frozen_norms(model)}
    norms = [m for m in model.modules() if isinstance(m, StatisticsNorm) and m.running_mean is not None]
    norms = [norm for norm in norms if id(norm) not in fixed]
    if not norms:
        return
    momenta = [module.momentum for module in norms]
    for module in norms:
        module.reset_running_stats()
        module.momentum = None  # a plain average over all batches
    dropouts = seeded_modules(model).values()
    train_mode_(model)
    try:
        with torch.no_grad():
            for step, batch in enumerate(cut_batches(model, len(inputs), batch_size)):
                set_streams_(dropouts, torch.from_numpy(streams(np.array([0]), np.array([step]), len(dropouts)))[0])
                model(inputs[batch].clone())  # which it may change in place, by dropout too
    finally:
        model.eval()
        for module, momentum in zip(norms, momenta, strict=True):
            module.momentum = momentum
