"""Texts as tokens of a pretrained model: tokenised once, into a memory-mapped cache."""

import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from hashlib import sha256
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fedsim.data.fingerprint import fingerprint
from fedsim.data.image_cache import cached
from fedsim.errors import first_line
from fedsim.lazy import Place
from fedsim.models.architectures.huggingface import library_options, pad_token_of, positions
from fedsim.reading import existing_path
from fedsim.training.targets import IGNORED

# Files of a model's folder that its tokenizer is made of.
PARTS_OF_TOKENIZER = ("tokenizer*", "vocab*", "merges*", "*.model", "special_tokens_map.json", "added_tokens.json")
TRUNCATED = "%s: %s of %s texts have more than %s tokens and are truncated"
logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Tokens:
    """Texts as tokens.

    Parameters
    ----------
    of
        Tokens of each part, int64 [n, length], as long as the longest text of any part and padded on the right.
    vocabulary
        All tokens in the order of their numbers.
    pad
        Token that pads a text.
    """

    of: Mapping[str, Tensor]
    vocabulary: tuple[str, ...]
    pad: int

    def next_of(self, part: str) -> tuple[Tensor, Tensor]:
        """Return all tokens of texts but the last, and the one that follows each; padding has no target that counts."""
        tokens = self.of[part]
        following = tokens[:, 1:].clone()
        real = (tokens[:, 1:] != self.pad).flip(1).cumsum(1).flip(1) > 0
        # Where one token both pads and ends a text, the end is no target.
        return tokens[:, :-1].clone(), following.masked_fill(~real, IGNORED)


def tokenised(texts: Mapping[str, Sequence[str]], tokenizer: str, length: int, where: str) -> Tokens:
    """Return texts as tokens by a model's own tokenizer; a text longer than allowed is truncated, and counted.

    Parameters
    ----------
    texts
        Texts of each part, such as ``train`` and ``test``.
    tokenizer
        Folder of a model with its tokenizer, or the id of one on the hub, with ``@`` and a revision if not ``main``.
    length
        Largest number of tokens of a text; 0 for as many as the model takes.
    where
        Where the texts are from, for messages.

    Raises
    ------
    ValueError
        If transformers is not installed, or there is no tokenizer.
    """
    if find_spec("transformers") is None:
        raise ValueError("a tokenizer needs transformers; pip install 'fedsim-layerwise[transformers]'")
    if length < 0:
        raise ValueError(f"length = {length} must be at least 0, which is as many tokens as the model takes")
    name, _, revision = (tokenizer, "", "") if existing_path(tokenizer) else tokenizer.partition("@")
    options = library_options(name, revision, setting="tokenizer")
    count = sum(map(len, texts.values()))
    identity = [{part: list(each) for part, each in texts.items()}, _identity(options), length]
    cache = f"tokens-{sha256(json.dumps(identity).encode()).hexdigest()[:16]}"
    fill = partial(_fill, texts, tokenizer, options, length, where)
    folder = cached(cache, fill, f"{count:,} texts of {where}", 8 * count * (length or 512))
    said = json.loads((folder / "tokens.json").read_text(encoding="utf-8"))
    if said["truncated"]:
        logger.info(TRUNCATED, where, *said["truncated"])
    # Copy on write, as decoded images are: shared by all processes.
    of = {part: torch.from_numpy(np.load(folder / f"{part}.npy", mmap_mode="c")) for part in texts}
    return Tokens(of, tuple(said["vocabulary"]), said["pad"])


def _identity(options: Mapping[str, Any]) -> list[str]:
    """Return what changes when a tokenizer does."""
    place = Path(options["pretrained_model_name_or_path"])
    if not place.is_dir():
        return [str(place), options["revision"]]
    files = sorted({file for pattern in (*PARTS_OF_TOKENIZER, "config.json") for file in place.glob(pattern)})
    return [f"{file.name} {fingerprint(file)}" for file in files]


def _fill(
    texts: Mapping[str, Sequence[str]], name: str, options: dict[str, Any], length: int, where: str, folder: Path
) -> None:
    """Write the tokens of all texts, and what is to be known of them."""
    tokenizer, config = _tokenizer(name, options), _config(options)
    most = min(each for each in (length or None, tokenizer.model_max_length, positions(config)) if each)
    pad = pad_token_of(tokenizer if config is None else config)  # what the model masks
    level = Place("transformers", "logging").load()
    before = level.get_verbosity()
    level.set_verbosity_error()  # it warns of texts that are too long; ours says how many
    try:
        found = {part: tokenizer(list(each), truncation=False)["input_ids"] for part, each in texts.items()}
        count, longer = sum(map(len, found.values())), 0
        for part, rows in found.items():
            for place, row in enumerate(rows):
                if len(row) > most:
                    longer += 1
                    # Special tokens at the end stay.
                    rows[place] = tokenizer(texts[part][place], truncation=True, max_length=int(most))["input_ids"]
    finally:
        level.set_verbosity(before)
    longest = max((len(row) for rows in found.values() for row in rows), default=1)
    for part, rows in found.items():
        padded = np.full((len(rows), longest), pad, np.int64)
        for place, row in enumerate(rows):
            padded[place, : len(row)] = row
        np.save(folder / f"{part}.npy", padded)
    vocabulary = tokenizer.convert_ids_to_tokens(list(range(len(tokenizer))))
    truncated = [f"{longer:,}", f"{count:,}", f"{int(most):,}"] if longer else []
    said = {
        "vocabulary": [str(token) for token in vocabulary],
        "pad": pad,
        "truncated": truncated,
    }
    if longer:
        logger.warning(TRUNCATED, where, *truncated)  # once, with the cache
    (folder / "tokens.json").write_text(json.dumps(said), encoding="utf-8")


def _tokenizer(name: str, options: dict[str, Any]) -> Any:
    try:
        return Place("transformers", "AutoTokenizer").load().from_pretrained(**options)
    except Exception as error:  # the library raises anything where files are missing or damaged
        raise ValueError(
            f"tokenizer = {name!r} has no tokenizer that can be loaded ({first_line(error)}); give the folder of a "
            "model with its tokenizer.json"
        ) from error


def _config(options: dict[str, Any]) -> Any:
    """Return the configuration of the tokenizer's model, or None if there is none."""
    try:
        return Place("transformers", "AutoConfig").load().from_pretrained(**options)
    except Exception:  # a tokenizer alone has none
        return None
