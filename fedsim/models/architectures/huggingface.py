"""Pretrained transformers of Hugging Face, from a folder or the hub; needs the extra ``transformers``."""

import logging
import os
import re
import socket
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn

from fedsim.errors import first_line
from fedsim.lazy import Place
from fedsim.models.architectures.checks import probability
from fedsim.models.architectures.of_one_tensor import of_images, of_texts
from fedsim.reading import existing_path, user_places

Task = Literal["classify", "regress", "next-token"]
HUB_ID = re.compile(r"[\w.-]+(/[\w.-]+)?")
# Of attention weights, and of whole layers or paths.
NEVER_DROPPED = ("att", "layerdrop", "path")
POSITIONS = ("max_position_embeddings", "n_positions")
SHIFTED = ("roberta", "camembert", "xlm-roberta", "xlm-roberta-xl", "longformer", "data2vec-text", "mpnet")
LISTED = 3
POOLER = "pooler"  # which files of models of language alone lack
logger = logging.getLogger(__name__)


def huggingface(
    shape: tuple[int, ...],
    classes: int,
    *,
    path: str,
    task: Task = "classify",
    dropout: float = 0.0,
    revision: str | None = None,
    vocabulary: int = 0,
    pad_token: int | None = None,
) -> nn.Module:
    """Load a pretrained transformer for texts or images; what the file has no weights for comes from the seed.

    Only safetensors are read, and no code of a model is run. Texts are padded to the longest of their batch, and
    nothing attends to padding.

    Parameters
    ----------
    path
        Folder with ``config.json`` and ``model.safetensors``, as given or relative to ``$FEDSIM_DATA``; else the id of
        a model of the hub, such as ``prajjwal1/bert-tiny``, which needs a network once.
    task
        What the outputs are: logits of a text's or an image's class (``classify``), numbers to predict (``regress``),
        or logits of the token that follows each one (``next-token``).
    dropout
        Share of the embeddings and of the outputs of the blocks that is dropped in training; no attention is, except in
        T5, which has one rate for both.
    revision
        Branch, tag or commit of the model on the hub.
    vocabulary
        Number of different tokens in the data; 0 for images.
    pad_token
        Token that pads texts in the data, if known.

    Raises
    ------
    ValueError
        If the library is not installed, there is no such model, it has other weights than safetensors or does not fit
        the task, or texts have more tokens than the model has words or positions, or other padding than it masks.
    """
    if find_spec("transformers") is None:
        raise ValueError("a model of Hugging Face needs transformers; pip install 'fedsim-layerwise[transformers]'")
    probability(dropout=dropout)
    library = library_options(path, revision)
    config = _loaded("AutoConfig", path, library)
    if task == "next-token" and not vocabulary:
        vocabulary = classes
    if vocabulary:
        _check_fits(config, shape, vocabulary, path)
        has_pad_token = isinstance(getattr(config, "pad_token_id", None), int)
        masked = pad_token_of(config)
        if pad_token not in (None, masked):
            if has_pad_token:  # positions and embeddings depend on it
                raise ValueError(
                    f"path = {path!r} masks the token {masked} as padding, and the data are padded with {pad_token}; "
                    "set [data] tokenizer to the model's own folder, with its config.json"
                )
            masked = pad_token
        config.pad_token_id, config.use_cache = masked, False
    _set_dropout_(config, dropout, path)
    if task != "next-token":
        config.num_labels = classes
    kind = "SequenceClassification" if vocabulary else "ImageClassification"
    model = _load("AutoModelForCausalLM" if task == "next-token" else f"AutoModelFor{kind}", path, config, library)
    if not vocabulary:
        return of_images(model)
    if not has_pad_token:  # then it is a token of texts too, which is learnt
        model.get_input_embeddings().padding_idx = None
    try:
        return of_texts(model, shape[0], vocabulary, predicts_next=task == "next-token")
    except ValueError as error:
        raise ValueError(f"path = {path!r} {error}") from error


def library_options(path: str, revision: str | None = None, setting: str = "path") -> dict[str, Any]:
    """Return where the library finds a folder or an id of the hub, and that it runs no code.

    Raises
    ------
    ValueError
        If it is neither, or an id and there is no network.
    """
    always = {"trust_remote_code": False}
    if place := existing_path(path):
        if not place.is_dir():
            raise ValueError(f"{setting} = {path!r} is a file; give the folder with config.json and model.safetensors")
        return always | {"pretrained_model_name_or_path": str(place), "local_files_only": True}
    if not HUB_ID.fullmatch(path) or path.startswith("."):
        looked = " and ".join(str(place.absolute()) for place in user_places(path))
        raise ValueError(
            f"{setting} = {path!r} does not exist (looked at {looked}); correct the path, or set $FEDSIM_DATA"
        )
    options = always | {"pretrained_model_name_or_path": path, "revision": revision or "main"}
    try:
        Place("huggingface_hub", "hf_hub_download").load()(
            path, "config.json", revision=options["revision"], local_files_only=True
        )
    except Exception as error:  # it is not in the cache
        if not _has_network():
            raise ValueError(
                f"{setting} = {path!r} is no folder here, and as an id of the hub it needs a network once; give the "
                "folder of a model, or connect to a network"
            ) from error
        return options
    return options | {"local_files_only": True}


def _has_network() -> bool:
    """Return whether the hub's host name resolves; the library itself would retry for half a minute."""
    if any(os.environ.get(name) for name in ("HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy")):
        return True
    host = str(Place("huggingface_hub.constants", "ENDPOINT").load()).partition("://")[2].partition("/")[0]
    try:
        socket.getaddrinfo(host.partition(":")[0], 443)
    except OSError:
        return False
    return os.environ.get("HF_HUB_OFFLINE", "0") in ("", "0")


def _set_dropout_(config: Any, dropout: float, path: str) -> None:
    """Set every dropout of a configuration, which have another name in each family: 0 on attention weights."""
    settings = {
        name: value
        for name, value in vars(config).items()
        if "drop" in name and isinstance(value, int | float) and not isinstance(value, bool)
    }
    taken = [name for name in settings if not any(part in name for part in NEVER_DROPPED)]
    for name in settings:
        setattr(config, name, dropout if name in taken else 0.0)
    if dropout and not taken:
        raise ValueError(f"path = {path!r} has no dropout but that of attention weights; leave dropout = {dropout} out")


def pad_token_of(config: Any) -> int:
    """Return the token that pads texts: that of a configuration or tokenizer, else the one that ends a text."""
    for name in ("pad_token_id", "eos_token_id"):
        value = getattr(config, name, None)
        value = value[0] if isinstance(value, list) and value else value
        if isinstance(value, int) and value >= 0:
            return value
    return 0


def positions(config: Any) -> int | None:
    """Return the number of tokens that a model takes, if its configuration says so."""
    found = (getattr(config, name, None) for name in POSITIONS)
    most = next((value for value in found if isinstance(value, int) and value > 0), None)
    # Positions of RoBERTa's family begin after that of the padding.
    if most is None or getattr(config, "model_type", None) not in SHIFTED:
        return most
    return most - pad_token_of(config) - 1


def _check_fits(config: Any, shape: tuple[int, ...], vocabulary: int, path: str) -> None:
    words, most = getattr(config, "vocab_size", None), positions(config)
    if words is not None and vocabulary > words:
        raise ValueError(
            f"path = {path!r} knows {words:,} tokens, and the data have {vocabulary:,}; tokenise them with the model's "
            "own tokenizer, [data] tokenizer"
        )
    if most is not None and shape[0] > most:
        raise ValueError(f"path = {path!r} takes {most} tokens, and texts have {shape[0]}; set [data] length = {most}")


def _loaded(loader: str, path: str, options: dict[str, Any], **more: Any) -> Any:
    """Return what a loader of the library gives."""
    try:
        return Place("transformers", loader).load().from_pretrained(**options, **more)
    except Exception as error:  # the library raises anything for a damaged file
        raise ValueError(f"path = {path!r} cannot be loaded: {first_line(error)}") from error


def _load(loader: str, path: str, config: Any, options: dict[str, Any]) -> Any:
    """Return a model with the weights of its file; only the head may be without them."""
    folder = Path(options["pretrained_model_name_or_path"])
    if options.get("local_files_only") and folder.is_dir() and not list(folder.glob("*.safetensors")):
        others = ", ".join(sorted(each.name for each in folder.glob("*.bin")))
        raise ValueError(
            f"path = {path!r} holds no model.safetensors"
            + (f", only {others}, which may hold code" * bool(others))
            + "; save it with save_pretrained of transformers"
        )
    level = Place("transformers", "logging").load()
    before = level.get_verbosity()
    level.set_verbosity_error()  # what it reports of weights is checked here
    level.disable_progress_bar()
    try:
        model, found = _loaded(
            loader,
            path,
            options,
            config=config,
            use_safetensors=True,
            dtype=torch.float32,
            ignore_mismatched_sizes=True,
            output_loading_info=True,
        )
    finally:
        level.set_verbosity(before)
    base = f"{model.base_model_prefix}."
    mismatched = [each[0] if isinstance(each, tuple) else each for each in found["mismatched_keys"]]
    if wrong := sorted(key for key in mismatched if key.startswith(base)):
        raise ValueError(f"path = {path!r} does not fit its own configuration: {', '.join(wrong[:LISTED])} differ")
    if lost := sorted(key for key in found["missing_keys"] if key.startswith(base) and POOLER not in key):
        raise ValueError(
            f"path = {path!r} holds no weights for {len(lost)} entries of the model, such as {lost[0]}"
            + f"; its own are called {min(found['unexpected_keys'])} and so on" * bool(found["unexpected_keys"])
            + "; save the model that config.json is of, with save_pretrained"
        )
    if missing := sorted(found["missing_keys"] | set(mismatched)):
        logger.info("%s has no weights for %s, which start from the seed", path, ", ".join(missing))
    vars(model).pop("generation_config", None)
    assert isinstance(model, nn.Module)
    vars(model)["drawn"] = frozenset(missing)  # which `fedsim.models.adapters` trains whole
    return model
