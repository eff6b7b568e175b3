"""A partition in the folder layout of PFLlib, so that its methods run on the same clients."""

import io
import json
from pathlib import Path
from typing import Any

import numpy as np

from fedsim.data.heterogeneity import Heterogeneity
from fedsim.data.tasks import task_of
from fedsim.errors import ConfigError
from fedsim.federation.data import FederatedData, InputsAndTargets
from fedsim.results.files import write_whole


def write_pfllib(data: FederatedData, folder: Path) -> Path:
    """Write ``train/<client>.npz``, ``test/<client>.npz`` and, last, ``config.json``; return the folder.

    Inputs are normalised and skewed as the clients see them. PFLlib has no validation examples, so these are not
    written; set ``partition.validation = 0`` to have them in ``train``.

    Raises
    ------
    ConfigError
        If the data do not have one class for each example, as PFLlib reads targets as whole numbers.

    References
    ----------
    Zhang et al. 2023, PFLlib: personalized federated learning algorithm library, arXiv 2312.04992; its
    ``dataset/utils/dataset_utils.py``.
    """
    task, targets = task_of(data.dataset).name, data.dataset.train.targets
    if task not in ("classification", "binary") or targets.ndim != 1:
        raise ConfigError(
            f"{data.dataset.name!r} has the task {task!r} and targets of shape {tuple(targets.shape)}, and PFLlib "
            "reads one class for each example; leave --pfllib out"
        )
    (folder / "config.json").unlink(missing_ok=True)  # so that a partial export is not taken for a data set
    for old in [*folder.glob("train/*.npz"), *folder.glob("test/*.npz")]:
        if old.stem.isdigit():  # a client of an earlier partition
            old.unlink()
    for client in range(len(data.split)):
        own = data.client(client)
        write_whole(folder / "train" / f"{client}.npz", _archive(own.train))
        write_whole(folder / "test" / f"{client}.npz", _archive(own.test))
    write_whole(folder / "config.json", json.dumps(_config(data)))
    return folder


def _archive(examples: InputsAndTargets) -> bytes:
    inputs, targets = (tensor.cpu().contiguous().numpy() for tensor in examples)
    buffer = io.BytesIO()
    # A dict as the one element of an object array is what PFLlib reads.
    np.savez_compressed(buffer, data=np.array({"x": inputs, "y": targets}, dtype=object))
    return buffer.getvalue()


def _config(data: FederatedData) -> dict[str, Any]:
    config, measured = data.config, data.heterogeneity()
    sizes = measured.sizes
    return {
        "num_clients": config.clients,
        "num_classes": len(measured.classes),
        "non_iid": config.partition.scheme != "iid",
        "balance": bool(sizes.max() - sizes.min() <= 1),
        "partition": config.partition.scheme,
        "Size of samples for labels in clients": _statistic(measured),
        "alpha": config.partition.options.get("alpha"),
        "batch_size": config.local.batch_size,
    }


def _statistic(measured: Heterogeneity) -> list[list[list[int]]]:
    """Return label and count for each label of each client."""
    pairs = np.stack([measured.counts.labels, measured.counts.counts], axis=1)
    return [row.tolist() for row in np.split(pairs, measured.counts.offsets[1:-1])]
