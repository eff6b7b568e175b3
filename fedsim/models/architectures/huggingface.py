"""Pretrained transformers of Hugging Face, from a folder or the hub; needs the extra ``transformers``."""

import logging
import os
import re
import socket
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from fedsim.errors import first_line
from fedsim.lazy import Place
from fedsim.models.architectures.checks import probability
from fedsim.reading import existing_path, user_places

Task = Literal["classify", "regress", "next-token"]
HUB_ID = re.compile(r"[\w.-]+(/[\w.-]+)?")
ATTENTION_DROPOUT = ("attention_probs_dropout_prob", "attention_dropout", "attn_pdrop")
DROPOUT = ("hidden_dropout_prob", "hidden_dropout", "resid_pdrop", "embd_pdrop", "dropout", "classifier_dropout")
POSITIONS = ("max_position_embeddings", "n_positions")
SHIFTED = ("roberta", "camembert", "xlm-roberta", "xlm-roberta-xl", "longformer", "data2vec-text", "mpnet")
LISTED = 3
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
        Share of the embeddings and of the outputs of the blocks that is dropped in training; no attention is.
    revision
        Branch, tag or commit of the model on the hub.
    vocabulary
        Number of different tokens in the data; 0 for images.

    Raises
    ------
    ValueError
        If the library is not installed, there is no such model, it has other weights than safetensors or does not fit
        the task, or texts have more tokens than the model has words or positions.
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
        config.pad_token_id = pad_token(config)
    for name in ATTENTION_DROPOUT:
        if getattr(config, name, None) is not None:
            setattr(config, name, 0.0)
    for name in DROPOUT:
        if isinstance(getattr(config, name, None), float):
            setattr(config, name, dropout)
    if task != "next-token":
        config.num_labels = classes
    kind = "SequenceClassification" if vocabulary else "ImageClassification"
    model = _load("AutoModelForCausalLM" if task == "next-token" else f"AutoModelFor{kind}", path, config, library)
    model.__class__ = _as_function(type(model), "texts" if vocabulary else "images")
    return model


class _OfTexts(nn.Module):
    """A transformer as a function of tokens: [n, length] to logits, [n, classes] or [n, vocabulary, length]."""

    config: Any

    def forward(self, tokens: Tensor) -> Tensor:
        """Return the logits; padding takes part in nothing."""
        pad, length = self.config.pad_token_id, tokens.shape[1]
        # Shorter rows change no number, except that a mask of dropout depends on the shape, in a cohort too.
        if not torch._C._functorch.is_functorch_wrapped_tensor(tokens) and not (self.training and self._drops()):
            tokens = _without_padding(tokens, pad)
        is_causal = any(getattr(module, "is_causal", False) for module in self.modules())
        options = {"use_cache": False} if is_causal else {}
        mask = _mask(tokens != pad, is_causal=is_causal)
        logits: Tensor = super().forward(input_ids=tokens, attention_mask=mask, **options).logits
        if logits.ndim < 3:
            return logits
        return nn.functional.pad(logits.transpose(1, 2), (0, length - logits.shape[1]))

    def _drops(self) -> bool:
        return any(isinstance(module, nn.Dropout) and module.p > 0 for module in self.modules())


class _OfImages(nn.Module):
    """A transformer as a function of images: [n, channels, height, width] to logits, [n, classes]."""

    def forward(self, images: Tensor) -> Tensor:
        """Return the logits."""
        logits: Tensor = super().forward(pixel_values=images).logits
        return logits


def _as_function(architecture: type[nn.Module], inputs: Literal["texts", "images"]) -> type[nn.Module]:
    """Return a subclass of a library's model that maps one tensor to one; layers and keys are the library's."""
    return type(architecture.__name__, (_OfTexts if inputs == "texts" else _OfImages, architecture), {})


def _without_padding(tokens: Tensor, pad: int) -> Tensor:
    """Return a batch as long as its longest row."""
    used = (tokens != pad).any(0).nonzero()
    return tokens[:, : int(used[-1]) + 1 if len(used) else 1]


def _mask(is_token: Tensor, *, is_causal: bool) -> Tensor:
    """Return what is added to the scores of attention, [n, 1, length, length]; no value decides how it is computed."""
    length = is_token.shape[1]
    seen = is_token[:, None, None, :].expand(-1, 1, length, length)
    if is_causal:
        seen = seen & torch.ones(length, length, dtype=torch.bool, device=is_token.device).tril()
    return torch.where(seen, 0.0, torch.finfo(torch.float32).min)


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


def pad_token(config: Any) -> int:
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
    most = next((value for value in found if isinstance(value, int)), None)
    # Positions of RoBERTa's family begin after that of the padding.
    if most is None or getattr(config, "model_type", None) not in SHIFTED:
        return most
    return most - pad_token(config) - 1


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


def _load(loader: str, path: str, config: Any, options: dict[str, Any]) -> nn.Module:
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
    if missing := sorted(found["missing_keys"] | set(mismatched)):
        logger.info("%s has no weights for %s, which start from the seed", path, ", ".join(missing))
    vars(model).pop("generation_config", None)
    assert isinstance(model, nn.Module)
    vars(model)["drawn"] = frozenset(missing)  # which `fedsim.models.adapters` trains whole
    return model
