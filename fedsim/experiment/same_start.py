"""Whether the user's code still gives the data and the initial model that a run began with."""

from collections.abc import Iterable
from hashlib import sha256

import numpy as np
import torch
from torch import Tensor

from fedsim.errors import ConfigError
from fedsim.federation.federation import Federation
from fedsim.results.folder import RunFolder

KEY = "begun_with"  # of env.json
SAMPLE = 64  # examples and values of a tensor that are looked at; of targets and of the split it is all


def start_of(federation: Federation) -> dict[str, str]:
    """Return hashes of the data with their split, and of the initial model."""
    dataset, split = federation.data.dataset, federation.data.split
    parts = (dataset.train, dataset.test)
    data = [*(part.targets for part in parts), *(_some(part.inputs) for part in parts)]
    held = [array for part in split.parts for array in (part.indices, part.offsets)]
    return {
        "data": _hash([*data, *map(torch.from_numpy, held)]),
        "model": _hash(_some(value.flatten()) for value in federation.initial.values()),
    }


def check_start(folder: RunFolder, federation: Federation) -> None:
    """Check that a run's data and initial model are those that it began with, as far as it has noted them.

    Raises
    ------
    ConfigError
        If they are not: the files that name a run are the same, so the code itself gives something else each time.
    """
    before = folder.known_env().get(KEY, {})
    config = federation.config
    names = {"data": f"data.name = {config.data.name!r}", "model": f"model.name = {config.model.name!r}"}
    for what, now in start_of(federation).items():
        if before.get(what, now) != now:
            raise ConfigError(
                f"run folder {folder.path} began with other values of {names[what]} than its code gives now, from the "
                "same files; it may draw from an unseeded generator or follow the order of a set; let it give the same "
                "each time, and run it again into another folder with --out"
            )


def _some(values: Tensor) -> Tensor:
    return values[torch.from_numpy(np.linspace(0, len(values) - 1, min(SAMPLE, len(values))).astype(np.int64))]


def _hash(tensors: Iterable[Tensor]) -> str:
    digest = sha256()
    for value in tensors:
        digest.update(repr((tuple(value.shape), value.dtype)).encode())
        # One entry of an expanded tensor has a stride of 0, which cannot be viewed as bytes.
        plain = value.detach().cpu().clone(memory_format=torch.contiguous_format)
        digest.update(plain.flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()[:16]
