"""Small models as people bring them: written for plain torch, with all that is usual there."""

import math
import warnings
from collections.abc import Callable
from functools import cache
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate, relu, scaled_dot_product_attention
from torch.nn.utils import parametrizations, parametrize

CLASSES = 4
VECTOR, TOKENS, IMAGE = (6,), (5,), (2, 8, 8)


def inputs_of(shape: tuple[int, ...], n: int = 9, seed: int = 1) -> Tensor:
    """Return token sequences for a length, else random numbers."""
    generator = torch.Generator().manual_seed(seed)
    if shape == TOKENS:
        return torch.randint(CLASSES, (n, *shape), generator=generator)
    return torch.randn(n, *shape, generator=generator)


class OptionalState(nn.Module):
    """A recurrent network that takes the state to begin with, if there is one."""

    def __init__(self, kind: type[nn.RNNBase]) -> None:
        super().__init__()
        self.embed, self.rnn = nn.Embedding(CLASSES, 5), kind(5, 6, batch_first=True)
        self.fc = nn.Linear(6, CLASSES)

    def forward(self, x: Tensor, h: Any = None) -> Tensor:
        if h is None:
            h = torch.zeros(1, x.size(0), 6)
            h = (h, h.clone()) if isinstance(self.rnn, nn.LSTM) else h
        out, _ = self.rnn(self.embed(x), h)
        return self.fc(out[:, -1])


class Cells(nn.Module):
    """A loop over positions with a cell."""

    def __init__(self) -> None:
        super().__init__()
        self.cell, self.fc = nn.GRUCell(2, 5), nn.Linear(5, CLASSES)

    def forward(self, x: Tensor, state: Tensor | None = None, *, steps: int = 3) -> Tensor:
        for step in range(steps):
            state = self.cell(x[:, 2 * step : 2 * step + 2], state)
        return self.fc(state)


class Options(nn.Module):
    """Takes what is usual besides the inputs, all with defaults."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Linear(6, 7), nn.Linear(7, CLASSES)

    def forward(
        self,
        x: Tensor,
        temperature: float = 2.0,
        mask: Tensor | None = None,
        *more: Tensor,
        scale: float = 0.5,
        **rest: Any,
    ) -> Tensor:
        hidden = relu(self.one(x)) * scale
        if mask is not None:
            hidden = hidden * mask
        if more or rest.get("double"):
            hidden = hidden * 2
        return self.two(hidden) / temperature


class UNet(nn.Module):
    """Two scales with skip connections, a transposed convolution and an upsampling; a class for each pixel."""

    def __init__(self) -> None:
        super().__init__()
        self.down1, self.down2 = self.block(2, 3), self.block(3, 4)
        self.middle = self.block(4, 5)
        self.up2, self.merge2 = nn.ConvTranspose2d(5, 4, 2, stride=2), self.block(8, 4)
        self.merge1 = self.block(7, 3)
        self.pool, self.out = nn.MaxPool2d(2), nn.Conv2d(3, CLASSES, 1)

    @staticmethod
    def block(channels: int, width: int) -> nn.Module:
        return nn.Sequential(
            nn.Conv2d(channels, width, 3, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU(inplace=True)
        )

    def forward(self, x: Tensor) -> Tensor:
        first = self.down1(x)
        second = self.down2(self.pool(first))
        x = self.up2(self.middle(self.pool(second)))
        if x.shape[-1] != second.shape[-1]:
            x = interpolate(x, size=second.shape[-2:])
        x = self.merge2(torch.cat([x, second], 1))
        x = interpolate(x, scale_factor=2, mode="bilinear", align_corners=False)
        return self.out(self.merge1(torch.cat([x, first], dim=1)))


class SqueezeExcite(nn.Module):
    """Channels weighted by what the whole image shows; features flattened by a view."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(2, 4, 3, padding=1), nn.GroupNorm(2, 4)
        self.squeeze, self.excite = nn.Conv2d(4, 2, 1), nn.Conv2d(2, 4, 1)
        self.fc = nn.Linear(4 * 16, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        b = x.shape[0]
        x = relu(self.norm(self.conv(x)))
        weight = torch.sigmoid(self.excite(relu(self.squeeze(x.mean((2, 3), keepdim=True)))))
        x = nn.functional.max_pool2d(x * weight, 2)
        return self.fc(x.view(b, -1))


class Conv1D(nn.Module):
    """A linear layer with a transposed weight, as in Hugging Face's GPT-2."""

    def __init__(self, outputs: int, inputs: int) -> None:
        super().__init__()
        self.nf = outputs
        self.weight = nn.Parameter(torch.randn(inputs, outputs) * 0.3)
        self.bias = nn.Parameter(torch.zeros(outputs))

    def forward(self, x: Tensor) -> Tensor:
        size_out = (*x.size()[:-1], self.nf)
        return torch.addmm(self.bias, x.view(-1, x.size(-1)), self.weight).view(size_out)


class GPT2Block(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.ln_1, self.ln_2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.c_attn, self.c_proj = Conv1D(3 * width, width), Conv1D(width, width)
        self.c_fc, self.mlp_proj = Conv1D(2 * width, width), Conv1D(width, 2 * width)
        self.register_buffer("bias", torch.tril(torch.ones(8, 8, dtype=torch.bool))[None, None])

    def forward(self, x: Tensor, attention_mask: Tensor | None = None, use_cache: bool = False) -> tuple[Tensor, Any]:
        batch, length, width = x.size()
        q, k, v = (
            part.view(batch, length, self.heads, width // self.heads).transpose(1, 2)
            for part in self.c_attn(self.ln_1(x)).split(width, dim=2)
        )
        scores = (q @ k.transpose(-2, -1)) / math.sqrt(k.size(-1))
        lowest = torch.finfo(scores.dtype).min
        scores = torch.where(self.bias[:, :, :length, :length], scores, torch.full([], lowest))
        if attention_mask is not None:
            scores = scores + attention_mask
        attended = (scores.softmax(-1) @ v).transpose(1, 2).contiguous().view(batch, length, width)
        x = x + self.c_proj(attended)
        x = x + self.mlp_proj(nn.functional.gelu(self.c_fc(self.ln_2(x)), approximate="tanh"))
        return x, (k, v) if use_cache else None


class GPT2(nn.Module):
    """Positions from `arange`, tied embeddings, an assertion on the length, dicts between its parts."""

    def __init__(self) -> None:
        super().__init__()
        self.wte, self.wpe = nn.Embedding(CLASSES, 8), nn.Embedding(8, 8)
        self.h = nn.ModuleList([GPT2Block(8, 2) for _ in range(2)])
        self.ln_f, self.lm_head = nn.LayerNorm(8), nn.Linear(8, CLASSES, bias=False)
        self.lm_head.weight = self.wte.weight

    def forward(self, input_ids: Tensor, past: Any = None, return_dict: bool = False) -> Any:
        length = input_ids.shape[1]
        assert length <= 8, "too long"
        x = self.wte(input_ids) + self.wpe(torch.arange(length, device=input_ids.device))
        for block in self.h:
            x = block(x)[0]
        logits = self.lm_head(self.ln_f(x)).transpose(1, 2)
        return {"logits": logits, "past": past} if return_dict else logits


class Lists(nn.Module):
    """Parameters in lists and dicts, a scalar, and one that the loss never reaches."""

    def __init__(self) -> None:
        super().__init__()
        self.weights = nn.ParameterList([nn.Parameter(torch.randn(6, 6) * 0.4) for _ in range(2)])
        self.more = nn.ParameterDict(
            {"out": nn.Parameter(torch.randn(6, CLASSES)), "bias": nn.Parameter(torch.ones(CLASSES))}
        )
        self.scale, self.unused = nn.Parameter(torch.tensor(0.7)), nn.Parameter(torch.ones(3))

    def forward(self, x: Tensor) -> Tensor:
        for weight in self.weights:
            x = torch.tanh(x @ weight) * self.scale
        return x @ self.more["out"] + self.more["bias"]


class Symmetric(nn.Module):
    def forward(self, weight: Tensor) -> Tensor:
        return weight.triu() + weight.triu(1).transpose(-1, -2)


def parametrised(apply: Callable[[nn.Module], nn.Module]) -> Callable[[], nn.Module]:
    def make() -> nn.Module:
        return nn.Sequential(
            nn.Linear(6, 6), nn.ReLU(), apply(nn.Linear(6, 6)), nn.ReLU(), apply(nn.Linear(6, CLASSES))
        )

    return make


def symmetric() -> nn.Module:
    model = nn.Sequential(nn.Linear(6, 6), nn.ReLU(), nn.Linear(6, 6), nn.Tanh(), nn.Linear(6, CLASSES))
    parametrize.register_parametrization(model[2], "weight", Symmetric())
    return model


class Fourier(nn.Module):
    """A layer of complex weights for the lowest frequencies of an image."""

    def __init__(self) -> None:
        super().__init__()
        self.lift = nn.Conv2d(2, 3, 1)
        self.spectral = nn.Parameter(torch.randn(3, 3, 3, 3, dtype=torch.complex64) / 3)
        self.fc = nn.Linear(3, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = self.lift(x)
        lowest = torch.fft.rfft2(x)[:, :, :3, :3]
        mixed = torch.einsum("bixy,ioxy->boxy", lowest, self.spectral)
        return self.fc(relu(torch.fft.irfft2(mixed, s=x.shape[-2:]) + x).mean((2, 3)))


class Stateful(nn.Module):
    """Keeps its hidden state from one call to the next of as many examples."""

    def __init__(self) -> None:
        super().__init__()
        self.cell, self.fc = nn.GRUCell(6, 5), nn.Linear(5, CLASSES)
        self.hidden: Tensor | None = None

    def forward(self, x: Tensor) -> Tensor:
        if self.hidden is None or len(self.hidden) != len(x):
            self.hidden = x.new_zeros(len(x), 5)
        self.hidden = self.cell(x, self.hidden).detach()
        return self.fc(self.hidden)


class Remembers(nn.Module):
    """Keeps a running mean of its inputs in a buffer, in evaluation mode, too."""

    def __init__(self) -> None:
        super().__init__()
        self.fc, self.out = nn.Linear(6, 5), nn.Linear(5, CLASSES)
        self.register_buffer("memory", torch.zeros(5))

    def forward(self, x: Tensor) -> Tensor:
        hidden = torch.tanh(self.fc(x))
        out = self.out(hidden + self.memory)
        self.memory.mul_(0.5).add_(hidden.detach().mean(0), alpha=0.5)
        return out


class Counts(nn.Module):
    """Counts its calls, and every third is another."""

    def __init__(self) -> None:
        super().__init__()
        self.fc, self.calls = nn.Linear(6, CLASSES), 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        return self.fc(x if self.calls % 3 else -x)


class Branches(nn.Module):
    """Decides by a value that it computes."""

    def __init__(self) -> None:
        super().__init__()
        self.gate, self.one, self.two = nn.Linear(6, 1), nn.Linear(6, CLASSES), nn.Linear(6, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        return self.one(x) if self.gate(x).mean() > 0 else self.two(x)


class BranchesInside(nn.Module):
    """Has a part that decides by the values of a batch, rarely in the other way."""

    class Clip(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.limit = nn.Parameter(torch.tensor(1.2))

        def forward(self, x: Tensor) -> Tensor:
            return x / x.norm(dim=1).max() if x.abs().max().item() > self.limit.item() else x

    def __init__(self) -> None:
        super().__init__()
        self.one, self.clip, self.two = nn.Linear(6, 5), self.Clip(), nn.Linear(5, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        return self.two(self.clip(torch.tanh(self.one(x)) * 1.3))


class Experts(nn.Module):
    """Sends each example to one of its experts."""

    def __init__(self) -> None:
        super().__init__()
        self.router = nn.Linear(6, 3)
        self.experts = nn.ModuleList([nn.Linear(6, CLASSES) for _ in range(3)])

    def forward(self, x: Tensor) -> Tensor:
        choice, out = self.router(x).argmax(1), x.new_zeros(len(x), CLASSES)
        for k, expert in enumerate(self.experts):
            chosen = choice == k
            if chosen.any():
                out[chosen] = expert(x[chosen])
        return out


class HalfInside(nn.Module):
    """A block and a buffer in bfloat16."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.block, self.out = nn.Linear(6, 6), nn.Linear(6, 6).bfloat16(), nn.Linear(6, CLASSES)
        self.register_buffer("shift", torch.tensor([0.1, -0.2, 0.3, 0.0, 0.5, 1.0], dtype=torch.bfloat16))

    def forward(self, x: Tensor) -> Tensor:
        return self.out(relu(self.block(relu(self.one(x)).bfloat16()) + self.shift).float())


class Straight(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.sign() * x.abs().mean(1, keepdim=True)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        return gradients[0]


class Binary(nn.Module):
    """Has a function with a gradient of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Linear(6, 7), nn.Linear(7, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        return self.two(Straight.apply(self.one(x)))


def hooked() -> nn.Module:
    model = nn.Sequential(nn.Linear(6, 7), nn.ReLU(), nn.Linear(7, CLASSES))
    model[0].register_forward_hook(lambda module, args, out: out.clamp(max=1.0))
    model[2].register_forward_pre_hook(lambda module, args: (args[0] * 1.5,))
    model.register_forward_hook(lambda module, args, out: out + 0.1 * args[0][:, :CLASSES])
    return model


class Squeezes(nn.Module):
    """Drops all dimensions of length 1."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.out = nn.Conv2d(2, 4, 3), nn.Conv2d(4, CLASSES, 1)

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.adaptive_avg_pool2d(self.out(relu(self.conv(x))), 1).squeeze()


class Transposed(nn.Module):
    """Goes up by transposed convolutions and flattens by a view."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.ConvTranspose2d(2, 3, 2, stride=2), nn.Conv2d(3, 2, 3, stride=4)
        self.fc = nn.Linear(2 * 16, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.down(self.up(x)).view(x.size(0), -1))


class Dicts(nn.Module):
    """Passes dicts and tuples from part to part, and contracts by `einsum`."""

    class Inner(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.randn(5, 6) * 0.4)

        def forward(self, batch: dict[str, Tensor]) -> dict[str, Any]:
            hidden = torch.einsum("bi,oi->bo", batch["x"], self.weight)
            return {"hidden": hidden, "pair": (hidden.sin(), hidden.cos())}

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.fc = self.Inner(), nn.Linear(10, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        found = self.inner({"x": x})
        return self.fc(torch.cat(found["pair"], dim=1)) + found["hidden"].mean(1, keepdim=True)


class Scripted(nn.Module):
    """Has a part that is compiled."""

    def __init__(self) -> None:
        super().__init__()
        self.one = torch.jit.script(nn.Sequential(nn.Linear(6, 7), nn.ReLU()))
        self.two = nn.Linear(7, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        return self.two(self.one(x))


class Masked(nn.Module):
    """Attention with masks, positions first."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.attention = nn.Embedding(CLASSES, 8), nn.MultiheadAttention(8, 2)
        self.norm, self.fc = nn.LayerNorm(8), nn.Linear(8, CLASSES)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        padding = x == 0
        padding = padding & ~padding.all(1, keepdim=True)
        hidden = self.embed(x).transpose(0, 1)
        if mask is None:
            mask = torch.triu(torch.ones(x.shape[1], x.shape[1], dtype=torch.bool), diagonal=1)
        out, _ = self.attention(hidden, hidden, hidden, key_padding_mask=padding, attn_mask=mask, need_weights=False)
        return self.fc(self.norm(hidden + out).mean(0))


class Encoder(nn.Module):
    """Torch's transformer, whose evaluation mode takes a faster path."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(CLASSES, 8)
        self.position = nn.Parameter(torch.randn(1, 5, 8))
        layer = nn.TransformerEncoderLayer(8, 2, 12, dropout=0.0, batch_first=True)
        self.encoder, self.fc = nn.TransformerEncoder(layer, 2), nn.Linear(8, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.encoder(self.embed(x) + self.position).mean(1))


class OwnAttention(nn.Module):
    """Scaled dot products, and a residual that is added in place to their projection."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.qkv = nn.Embedding(CLASSES, 8), nn.Linear(8, 24)
        self.proj, self.fc = nn.Linear(8, 8), nn.Linear(8, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.embed(x)
        q, k, v = self.qkv(hidden).unflatten(-1, (3, 2, 4)).permute(2, 0, 3, 1, 4)
        out = scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).flatten(2)
        out = self.proj(out)
        out += hidden
        return self.fc(out[:, -1])


class Folded(nn.Module):
    """Computes with its buffers alone before the inputs come in."""

    def __init__(self) -> None:
        super().__init__()
        self.fc, self.out = nn.Linear(6, 5), nn.Linear(5, CLASSES)
        self.register_buffer("mean", torch.randn(6))
        self.register_buffer("variance", torch.rand(6) + 0.5)

    def forward(self, x: Tensor) -> Tensor:
        scale = self.variance.add(1e-5).rsqrt()
        shift = -self.mean * scale
        return self.out(relu(self.fc(x * scale + shift)))


class LateClamp(nn.Module):
    """Changes a tensor in place, which shows for large values only."""

    def __init__(self) -> None:
        super().__init__()
        self.fc, self.out = nn.Linear(6, 5), nn.Linear(5, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.fc(x)
        hidden.clamp_(max=2.0)
        return self.out(hidden)


class OfTheBatch(nn.Module):
    """Normalises by the batch that it is given, of any size."""

    def __init__(self) -> None:
        super().__init__()
        self.fc, self.out = nn.Linear(6, 5), nn.Linear(5, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.fc(x)
        return self.out(hidden - 0.5 * hidden.mean(0, keepdim=True))


class FromTheDict(nn.Module):
    """Takes its weights not as attributes."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Linear(6, 7), nn.Linear(7, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        weights = dict(self.named_parameters())
        scaled = weights["one.weight"] / weights["one.weight"].norm()
        return self.two(relu(nn.functional.linear(x, scaled)) + self.one.bias)


class Foreign(NamedTuple):
    """A model as somebody brings it, and the shape of its inputs."""

    make: Callable[[], nn.Module]
    shape: tuple[int, ...]


def pruned(module: nn.Module) -> nn.Module:
    from torch.nn.utils import prune

    return prune.l1_unstructured(module, "weight", amount=0.3)


FOREIGN = {
    "lstm with an optional state": Foreign(lambda: OptionalState(nn.LSTM), TOKENS),
    "gru with an optional state": Foreign(lambda: OptionalState(nn.GRU), TOKENS),
    "cells": Foreign(Cells, VECTOR),
    "options": Foreign(Options, VECTOR),
    "u-net": Foreign(UNet, IMAGE),
    "squeeze and excitation": Foreign(SqueezeExcite, IMAGE),
    "gpt-2": Foreign(GPT2, TOKENS),
    "lists": Foreign(Lists, VECTOR),
    "weight_norm": Foreign(parametrised(parametrizations.weight_norm), VECTOR),
    "spectral_norm": Foreign(parametrised(parametrizations.spectral_norm), VECTOR),
    "orthogonal": Foreign(parametrised(parametrizations.orthogonal), VECTOR),
    "symmetric": Foreign(symmetric, VECTOR),
    "old weight_norm": Foreign(parametrised(torch.nn.utils.weight_norm), VECTOR),
    "old spectral_norm": Foreign(parametrised(torch.nn.utils.spectral_norm), VECTOR),
    "pruned": Foreign(parametrised(pruned), VECTOR),
    "fourier": Foreign(Fourier, IMAGE),
    "stateful": Foreign(Stateful, VECTOR),
    "remembers": Foreign(Remembers, VECTOR),
    "counts": Foreign(Counts, VECTOR),
    "branches": Foreign(Branches, VECTOR),
    "branches inside": Foreign(BranchesInside, VECTOR),
    "experts": Foreign(Experts, VECTOR),
    "bfloat16 inside": Foreign(HalfInside, VECTOR),
    "own gradient": Foreign(Binary, VECTOR),
    "hooks": Foreign(hooked, VECTOR),
    "squeezed": Foreign(Squeezes, IMAGE),
    "transposed": Foreign(Transposed, IMAGE),
    "dicts": Foreign(Dicts, VECTOR),
    "scripted": Foreign(Scripted, VECTOR),
    "masks": Foreign(Masked, TOKENS),
    "encoder": Foreign(Encoder, TOKENS),
    "own attention": Foreign(OwnAttention, TOKENS),
    "folded buffers": Foreign(Folded, VECTOR),
    "late clamp": Foreign(LateClamp, VECTOR),
    "of the batch": Foreign(OfTheBatch, VECTOR),
    "from the dict": Foreign(FromTheDict, VECTOR),
}


def make_foreign(name: str) -> nn.Module:
    """Return a new model, always with the same weights."""
    with torch.random.fork_rng(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of what torch deprecates and people still use
        torch.manual_seed(0)
        return FOREIGN[name].make()


@cache
def foreign(name: str) -> nn.Module:
    """Build a model once for all tests; none of them changes it."""
    return make_foreign(name).eval()
