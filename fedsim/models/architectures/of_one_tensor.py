"""Transformers of Hugging Face as functions of one tensor, tokens or images."""

from typing import Any

import torch
from torch import Tensor, nn

from fedsim.models.purity import is_close


class _OfTexts(nn.Module):
    """A transformer as a function of tokens: [n, length] to logits, [n, classes] or [n, vocabulary, length]."""

    config: Any
    # The library's own mask of tokens, [n, length], in place of that of `_mask`, for which a model can be vectorised.
    takes_plain_mask = False

    def forward(self, tokens: Tensor) -> Tensor:
        """Return the logits; padding takes part in nothing."""
        pad, length = self.config.pad_token_id, tokens.shape[1]
        # Shorter rows change no number, except that a mask of dropout depends on the shape, in a cohort too.
        if not torch._C._functorch.is_functorch_wrapped_tensor(tokens) and not (self.training and self._drops()):
            tokens = _without_padding(tokens, pad)
        seen = _is_token(tokens, pad)
        is_causal = any(getattr(module, "is_causal", False) for module in self.modules())
        mask = seen.long() if self.takes_plain_mask else _mask(seen, is_causal=is_causal)
        logits: Tensor = super().forward(input_ids=tokens, attention_mask=mask).logits
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


def of_images(model: nn.Module) -> nn.Module:
    """Return a library's model as a function of images; layers and keys are the library's."""
    return _as(_OfImages, model)


def of_texts(model: nn.Module, length: int, words: int, *, predicts_next: bool) -> nn.Module:
    """Return a library's model, in evaluation mode, as a function of tokens; layers and keys are the library's.

    Families differ in what their attention sees: all tokens, those before, or those within a window. So the model is
    compared with the library's own forward pass, and gets the library's own mask where ours gives other outputs.

    Parameters
    ----------
    length, words
        Number of tokens of the longest text, and of different ones.
    predicts_next
        Whether the outputs are those for each next token.

    Raises
    ------
    ValueError
        If the library's own pass fails, or a model that predicts the next token sees it.
    """
    found = _as(_OfTexts, model)
    tokens, real = _probe(found.config, length, words)
    found.eval()
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        try:
            ours = _real(found(tokens), real)
        except Exception:  # a model's code raises anything for a mask that it does not know
            ours = None
        found.takes_plain_mask = True
        try:
            own = _real(found(tokens), real)
        except Exception as error:
            raise ValueError(f"does not take tokens and a mask: {' '.join(str(error).split())[:120]}") from error
        found.takes_plain_mask = not is_close(ours, own)
        if predicts_next and length > 1 and not _looks_back(found, tokens):
            raise ValueError(
                "sees the token that it has to predict; give a model that looks back only, or set is_decoder in "
                "config.json"
            )
    return found


def _as(kind: type[nn.Module], model: nn.Module) -> Any:
    model.__class__ = type(type(model).__name__, (kind, type(model)), {})
    return model


def _probe(config: Any, length: int, words: int) -> tuple[Tensor, Tensor]:
    """Return two texts, one of them padded, and where they have tokens."""
    pad, end = config.pad_token_id, getattr(config, "eos_token_id", None)
    tokens = torch.randint(words, (2, length), generator=torch.Generator().manual_seed(0))
    tokens[(tokens == pad) | (tokens == end)] = next(k for k in range(words + 2) if k not in (pad, end)) % words
    half = max(1, length // 2)
    if getattr(config, "is_encoder_decoder", False) and isinstance(end, int):  # the classifier reads the last token's
        tokens[0, -1] = tokens[1, half - 1] = end
    tokens[1, half:] = pad
    return tokens, _is_token(tokens, pad)


def _real(logits: Tensor, is_token: Tensor) -> Tensor:
    return logits if logits.ndim < 3 else logits.transpose(1, 2)[is_token]


def _looks_back(model: nn.Module, tokens: Tensor) -> bool:
    """Return whether the outputs of a text's first half are the same with another second half."""
    half = tokens.shape[1] // 2
    other = tokens[:1].clone()
    other[0, half:] = (tokens[0, half:] + 1) % (tokens.max() + 1)
    found, expected = (model(each)[:, :, :half] for each in (tokens[:1], other))
    return is_close(found, expected)


def _is_token(tokens: Tensor, pad: int) -> Tensor:
    """Return what is no padding, which is at the end only, as a token of texts may pad them; an empty text has one."""
    own = tokens != pad
    later = own.flip(-1).cumsum(-1).flip(-1) > 0
    return later | (torch.arange(tokens.shape[-1], device=tokens.device) == 0)


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
