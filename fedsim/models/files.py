"""What checkpoint files hold: torch's, safetensors', in one piece or in shards. No code in a file is ever run."""

import argparse
import json
import re
import warnings
import zipfile
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from fedsim.errors import ConfigError, first_line
from fedsim.memory import check_fits
from fedsim.models.params import Params
from fedsim.reading import check_file, read_text

# Checkpoints in folders as Hugging Face's libraries write them, and other files that may be one.
IN_FOLDERS = (
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
)
PIECE = 2**24  # bytes that are read at a time
SUFFIXES = (".safetensors", ".pt", ".pth", ".ckpt", ".bin", ".tar")
# Of numbers that training scripts save next to the weights; they hold data only.
NUMBERS = {type(np.dtype(kind)) for kind in "?bBhHiIlLqQefdFD"}
MULTIARRAY = [np._core.multiarray._reconstruct, np._core.multiarray.scalar]  # type: ignore[attr-defined]


def read_file(path: Path) -> Any:
    """Return what a checkpoint file holds: for safetensors and shards, tensors by name.

    Parameters
    ----------
    path
        A file, an index of shards (``*.index.json``), or a folder with one of them under Hugging Face's names.

    Raises
    ------
    ConfigError
        If there is none, or it is damaged or holds code.
    """
    try:
        check_file(path)
        path = _file_in(path) if path.is_dir() else path
        check_fits(check_file(path).st_size, str(path))
    except FileNotFoundError as error:
        raise ConfigError(f"{path} does not exist; give a checkpoint as torch.save or safetensors write it") from error
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror}; give a checkpoint") from error
    except MemoryError as error:
        raise ConfigError(f"{error}; give a smaller checkpoint, or use a machine with more memory") from error
    if path.name.endswith(".index.json"):
        return _read_shards(path)
    return _read_safetensors(path) if path.suffix == ".safetensors" else _read_torch(path)


def _file_in(folder: Path) -> Path:
    if found := [folder / name for name in IN_FOLDERS if (folder / name).is_file()]:
        return found[0]
    files = sorted(path.name for path in folder.iterdir() if path.suffix in SUFFIXES)
    raise ConfigError(
        f"{folder} is a folder; give "
        + (
            f"one of its files: {', '.join(files[:5])}"
            if files
            else "a checkpoint as torch.save or safetensors write it"
        )
    )


def _read_shards(index: Path) -> Params:
    try:
        names = set(json.loads(read_text(index))["weight_map"].values())
        shards = [index.parent / Path(name).name for name in sorted(names)]
    except (OSError, ValueError, KeyError, AttributeError, TypeError, RecursionError) as error:
        raise ConfigError(f"{index} is damaged or no index of shards ({first_line(error)}); save it again") from error
    if missing := [shard.name for shard in shards if not shard.is_file()]:
        raise ConfigError(f"{index} names the shard {missing[0]!r}, which is not next to it; copy all shards")
    state: Params = {}
    for shard in shards:
        state |= read_file(shard)
    return state


def _read_safetensors(path: Path) -> Params:
    try:
        return load_file(path)
    except (SafetensorError, OSError, ValueError, KeyError, AttributeError) as error:
        raise ConfigError(
            f"{path} is damaged or not a safetensors file ({first_line(error)}); save it again"
        ) from error


def _read_torch(path: Path) -> Any:
    try:
        with warnings.catch_warnings(), torch.serialization.safe_globals(_of_data()):
            warnings.simplefilter("ignore")  # of old file formats
            _check_sums(path)
            return torch.load(path, map_location="cpu", weights_only=True)
    except UnpicklingError as error:
        raise ConfigError(
            f"{path} holds more than tensors{_what(error)}, or is damaged, and code in a file is never run; "
            "save model.state_dict() alone"
        ) from error
    except Exception as error:  # an arbitrary file may raise anything
        if "TorchScript" in str(error):
            raise ConfigError(f"{path} is an archive of TorchScript; save model.state_dict() instead") from error
        raise ConfigError(f"{path} is damaged or not a torch file ({first_line(error)}); save it again") from error


def _check_sums(path: Path) -> None:
    """Check the checksums that a file of `torch.save` has, and that `torch.load` does not look at.

    Raises
    ------
    BadZipFile
        If one is not that of the content.
    """
    if not zipfile.is_zipfile(path):
        return  # of an old format, without checksums
    with zipfile.ZipFile(path) as archive:
        for info in archive.infolist():
            if info.CRC and info.compress_type == zipfile.ZIP_STORED:  # torch writes 0 where it is to compute none
                with archive.open(info) as file:
                    while file.read(PIECE):  # which checks the sum at the end
                        pass


def _of_data() -> list[Any]:
    """Return the classes and functions, besides torch's own, that a file may name: they make nothing but data."""
    aliases = [(each, f"numpy.{core}.multiarray.{each.__name__}") for each in MULTIARRAY for core in ("core", "_core")]
    return [argparse.Namespace, np.ndarray, np.dtype, *NUMBERS, *aliases]


def _what(error: UnpicklingError) -> str:
    """Return the name of the class that a file asks for."""
    found = re.search(r"(?:GLOBAL|[Uu]nsupported class|global) ([\w.]+\.[\w.]+)", str(error))
    return f" ({found[1]})" if found else ""
