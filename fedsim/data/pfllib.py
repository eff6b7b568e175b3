"""Clients' own examples in the folder layout of PFLlib."""

import json
import pickle
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from fedsim.data.arrays import dataset_from
from fedsim.data.dataset import Dataset
from fedsim.data.places import user_path
from fedsim.errors import message_of
from fedsim.memory import check_fits
from fedsim.reading import check_file, read_text

PARTS = ("train", "test")
MEMBER = "data.npy"
NUMPY = ("numpy.core.multiarray", "numpy._core.multiarray")  # before version 2, and since
# All that a pickled array is made of: nothing else is called, whatever a file asks for.
ALLOWED: dict[tuple[str, str], Any] = {
    ("numpy", "ndarray"): np.ndarray,
    ("numpy", "dtype"): np.dtype,
    ("numpy", "matrix"): np.ndarray,
    ("numpy.matrixlib.defmatrix", "matrix"): np.ndarray,
    **{(module, "_reconstruct"): np.zeros(0).__reduce__()[0] for module in NUMPY},
    **{(module, "scalar"): np.float64(0).__reduce__()[0] for module in NUMPY},
}


def pfllib(*, path: str, classes: tuple[str, ...] = (), vocabulary: int = 0) -> Dataset:
    """Read a data set that PFLlib has split over clients, each with its own training and test examples.

    Its natural clients are PFLlib's, the id column ``client``: with the scheme ``natural`` and as many clients, client
    k is PFLlib's client k, and is tested on the same examples. The server's test set is all clients' test examples.

    Parameters
    ----------
    path
        Folder with ``train`` and ``test``, each with ``0.npz``, ``1.npz`` and so on; as given, or relative to
        ``$FEDSIM_DATA``.
    classes
        Names of the classes (default: the labels' numbers, from 0 to the largest).
    vocabulary
        Number of different tokens of texts (default: one more than the largest).

    Raises
    ------
    FileNotFoundError
        If a folder is missing or empty.
    ValueError
        If a file is damaged, holds something other than arrays, numbers, lists and dicts, or a client lacks a part.

    Notes
    -----
    A file holds, under ``data``, a pickled dict of ``x`` and ``y``. Unpickling calls nothing but the constructors of
    arrays. Inputs stay as PFLlib has normalised them. Pairs of tokens and their number are texts, of which the number
    is left out, and whole numbers of shape [n, length] are tokens too; all else becomes float32.

    References
    ----------
    Zhang et al. 2023, PFLlib: personalized federated learning algorithm library, arXiv 2312.04992.
    """
    folder = user_path(path)
    train, test = (_read(folder, part) for part in PARTS)
    for one, other, part in ((train, test, "test"), (test, train, "train")):
        if missing := sorted(one.keys() - other.keys()):
            raise ValueError(f"{folder} has no {part}/{missing[0]}.npz, and client {missing[0]} has other examples")
    _check_number(folder, len(train))
    every = [*train.values(), *test.values()]
    kinds = {(each.inputs.dtype.name, each.inputs.shape[1:]) for each in every if len(each.targets)}
    if len(kinds) != 1:
        found = " and ".join(f"{dtype} of shape {shape}" for dtype, shape in sorted(kinds)[:2]) or "none at all"
        raise ValueError(f"{folder}: inputs of the clients are {found}; they must be alike")
    every = [each for each in every if len(each.targets)]
    inputs, targets = (np.concatenate([getattr(each, what) for each in every]) for what in ("inputs", "targets"))
    clients = [
        np.repeat([*part], [len(each.targets) for each in part.values()]).astype(np.int64) for part in (train, test)
    ]
    trained = len(clients[0])
    content = {
        "train_inputs": inputs,
        "train_targets": targets,
        "test_inputs": inputs[trained:],
        "test_targets": targets[trained:],
    }
    dataset = dataset_from(
        content,
        str(folder),
        folder.name,
        channels="first",
        classes=classes,
        vocabulary=vocabulary,
        statistics=lambda inputs, scale: ((), ()),
    )
    ids = {"client": np.concatenate(clients)}
    return replace(dataset, ids=ids, fitted=None, held_out=np.arange(len(targets)) >= trained)


@dataclass(frozen=True)
class _Client:
    """A client's inputs, [n, ...], and targets, [n]."""

    inputs: np.ndarray
    targets: np.ndarray


def _read(folder: Path, part: str) -> dict[int, _Client]:
    """Return the examples of each client of a part, in the order of their numbers."""
    paths = {int(path.stem): path for path in (folder / part).glob("*.npz") if path.stem.isdecimal()}
    if not paths:
        raise FileNotFoundError(f"{folder / part} has no file 0.npz; PFLlib's generate_*.py write train/ and test/")
    with_sizes = {path: check_file(path).st_size for path in paths.values()}
    check_fits(sum(with_sizes.values()), str(folder / part))
    found = {}
    for client in sorted(paths):
        try:
            found[client] = _client(_unpickled(paths[client]))
        except MemoryError as error:
            raise MemoryError(f"{paths[client]}: {error}") from error
        except Exception as error:  # a damaged file may raise anything
            reason = f"no {error}" if isinstance(error, KeyError) else message_of(error)
            raise ValueError(
                f"{paths[client]} is damaged or not in PFLlib's format ({reason}); generate it again"
            ) from error
    return found


class _Arrays(pickle.Unpickler):
    """Reads arrays, and lists and dicts of them."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in ALLOWED:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}, which is no part of an array")
        return ALLOWED[module, name]


def _unpickled(path: Path) -> Any:
    with zipfile.ZipFile(path) as archive:
        if MEMBER not in archive.namelist():
            raise ValueError(f"it holds {', '.join(archive.namelist()) or 'nothing'}, not {MEMBER}")
        check_fits(archive.getinfo(MEMBER).file_size, "unpacked, it")
        with archive.open(MEMBER) as file:
            read_header = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
            shape, _, dtype = read_header[np.lib.format.read_magic(file)](file)
            if shape != () or not dtype.hasobject:
                raise ValueError(f"its data are {dtype} of shape {shape}, not a dict of x and y")
            held = _Arrays(file).load()
    return held.item() if isinstance(held, np.ndarray) else held


def _client(held: Any) -> _Client:
    if not isinstance(held, Mapping):
        raise ValueError(f"its data are {type(held).__name__}, not a dict of x and y")
    inputs, targets = np.asarray(held["x"]), np.asarray(held["y"])
    if inputs.dtype == object:
        inputs = np.array([tokens for tokens, _ in held["x"]], dtype=np.int64)
    elif inputs.dtype.kind not in "iu" or inputs.ndim != 2:
        inputs = inputs.astype(np.float32)
    else:
        inputs = inputs.astype(np.int64)
    if len(inputs) != targets.size:
        raise ValueError(f"it has {len(inputs)} inputs and {targets.size} targets")
    labels = targets.reshape(-1).astype(np.int64)
    if (labels != targets.reshape(-1)).any():
        raise ValueError("its targets are not whole numbers")
    return _Client(inputs, labels)


def _check_number(folder: Path, clients: int) -> None:
    """Check that the clients are those of the last time that PFLlib wrote: it leaves files of earlier ones."""
    config = folder / "config.json"
    if not config.exists():  # PFLlib writes none for its Shakespeare
        return
    try:
        known = json.loads(read_text(config))["num_clients"]
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise ValueError(f"{config} is damaged ({message_of(error)}); generate the data again") from error
    if known != clients:
        raise ValueError(
            f"{folder} has files of {clients} clients, and config.json is of {known}; remove the files of another "
            "generation"
        )
