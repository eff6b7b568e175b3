"""Models with what the models by name do not have, and the symmetries that they must be found to have."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torchvision.ops import FrozenBatchNorm2d

from fedsim.models.architectures.experts import MixtureOfExperts

WIDTH, HEADS, CLASSES = 8, 2, 5
Symmetries = tuple[tuple[int, dict[str, int]], ...]


def plain(**orders: int) -> Symmetries:
    return tuple((units, {name: 1}) for name, units in orders.items())


class SqueezeExcitation(nn.Module):
    symmetries = plain(conv=8, down=4)

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.down, self.up, self.fc = nn.Conv2d(3, 8, 3), nn.Linear(8, 4), nn.Linear(4, 8), nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = functional.relu(self.conv(x))
        gate = torch.sigmoid(self.up(functional.relu(self.down(x.mean((2, 3))))))
        return self.fc((x * gate[:, :, None, None]).mean([2, 3]))


class Dense(nn.Module):
    symmetries = plain(a=4, b=6, c=5)

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 6, 3, padding=1)
        self.norm, self.c, self.fc = nn.BatchNorm2d(10), nn.Conv2d(10, 5, 1), nn.Linear(15 * 64, 5)

    def forward(self, x: Tensor) -> Tensor:
        features = [self.a(x)]
        features.append(functional.relu(self.b(features[0])))
        features.append(self.c(self.norm(torch.cat(features, 1))))
        return self.fc(torch.flatten(torch.cat(features, 1), 1))


class PaddedShortcut(nn.Module):
    """The shortcut of He et al.'s option A: the channels that are new are zero."""

    symmetries: Symmetries = (
        (4, {"a": 1}),
        (2, {"b:0": 1}),
        (2, {"b:1": 1}),
    )

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 8, 3, padding=1, stride=2)
        self.c, self.fc = nn.Conv2d(8, 8, 3, padding=1), nn.Linear(8, 5)

    def shortcut(self, x: Tensor) -> Tensor:
        return functional.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, 2, 2))

    def forward(self, x: Tensor) -> Tensor:
        x = functional.relu(self.a(x))
        x = functional.relu(self.shortcut(x) + self.b(x))
        return self.fc(functional.relu(self.c(x) + x).mean((2, 3)))


class ConcatenatedShortcut(PaddedShortcut):
    symmetries: Symmetries = (
        (4, {"a": 1}),
        (4, {"b": 1}),
    )

    def shortcut(self, x: Tensor) -> Tensor:
        x = functional.avg_pool2d(x, 2)
        return torch.cat([x, torch.zeros_like(x)], 1)


class PaddedOnOneSide(PaddedShortcut):
    symmetries: Symmetries = (
        (4, {"a": 1}),
        (4, {"b": 1}),
    )

    def shortcut(self, x: Tensor) -> Tensor:
        return functional.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, 0, 4))


class TiedEmbedding(nn.Module):
    symmetries = plain(embedding=6)

    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.fc, self.out = nn.Embedding(7, 6), nn.Linear(6, 6), nn.Linear(6, 7, bias=False)
        self.out.weight = self.embedding.weight

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.embedding(tokens)
        return self.out(x + torch.tanh(self.fc(x)))


class SplitAttention(nn.Module):
    """Attention in the way of nanoGPT."""

    symmetries: Symmetries = (
        (8, {"into": 1}),
        (2, {"qkv:qk": 4, "qkv:vo": 4}),
    )

    def __init__(self) -> None:
        super().__init__()
        self.into, self.qkv, self.out = nn.Linear(3, WIDTH), nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)
        self.fc = nn.Linear(WIDTH, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = self.into(x)
        n, length, width = x.size()
        query, key, value = self.qkv(x).split(width, dim=2)
        parts = (each.view(n, length, HEADS, width // HEADS).transpose(1, 2) for each in (query, key, value))
        attended = functional.scaled_dot_product_attention(*parts, is_causal=True)
        x = self.residual(x, self.out(attended.transpose(1, 2).contiguous().view(n, length, width)))
        return self.fc(x.mean(1))

    def residual(self, x: Tensor, attended: Tensor) -> Tensor:
        return x + attended


class Attention(SplitAttention):
    """Attention in the way of timm, with a scale for each head."""

    symmetries: Symmetries = (
        (8, {"into": 1}),
        (2, {"qkv:qk": 4, "qkv:vo": 4, "scale": 1}),
    )

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(HEADS, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        x = self.into(x)
        n, length, width = x.shape
        heads = self.qkv(x).reshape(n, length, 3, HEADS, width // HEADS).permute(2, 0, 3, 1, 4)
        query, key, value = heads.unbind(0)
        scores = (query @ key.transpose(-2, -1)) * self.scale
        x = x + self.out((scores.softmax(dim=-1) @ value).transpose(1, 2).reshape(n, length, width))
        return self.fc(x[:, 0])


class HeadsAsOutputs(SplitAttention):
    """Values stay where they are, being the outputs, and so do the heads; units change places within each."""

    symmetries: Symmetries = (*plain(into=8), (4, {"qkv:qk0": 1}), (4, {"qkv:qk1": 1}))

    def __init__(self) -> None:
        super().__init__()
        self.out, self.fc = nn.Identity(), nn.Identity()

    def residual(self, x: Tensor, attended: Tensor) -> Tensor:
        return attended


class NormalisedQueries(nn.Module):
    """One norm for the queries of all heads, so that their units change places alike, and the heads do not."""

    symmetries: Symmetries = (
        (8, {"into": 1}),
        *plain(query=4),
        *[(4, {f"keys:vo{i}": 1}) for i in range(2)],
    )

    def __init__(self) -> None:
        super().__init__()
        self.into, self.keys, self.out = nn.Linear(3, WIDTH), nn.Linear(WIDTH, 2 * WIDTH), nn.Linear(WIDTH, WIDTH)
        self.fc = nn.Linear(WIDTH, CLASSES)
        self.query, self.norm = nn.Linear(WIDTH, WIDTH), nn.LayerNorm(WIDTH // HEADS)

    def forward(self, x: Tensor) -> Tensor:
        x = self.into(x)
        n, length, _ = x.shape
        query = self.norm(self.query(x).view(n, length, HEADS, -1)).transpose(1, 2)
        key, value = self.keys(x).chunk(2, dim=2)
        key, value = (each.view(n, length, HEADS, -1).transpose(1, 2) for each in (key, value))
        attended = torch.softmax(query @ key.transpose(2, 3), -1) @ value
        return self.fc((x + self.out(attended.transpose(1, 2).flatten(2))).mean(1))


class Mixture(nn.Module):
    """Experts change places with their rows of the gate, units within each, and those of the shared ones freely."""

    symmetries: Symmetries = (
        (8, {"into": 1}),
        (3, {"moe.gate": 1, "moe.experts.up": 4}),
        (8, {"moe.shared_experts.up": 1}),
    )

    def __init__(self) -> None:
        super().__init__()
        self.into, self.fc = nn.Linear(3, WIDTH), nn.Linear(WIDTH, CLASSES)
        self.moe = MixtureOfExperts(WIDTH, 4, 3, 2, 2, nn.GELU(), 0.0)

    def forward(self, x: Tensor) -> Tensor:
        x = self.into(x)
        return self.fc((x + self.moe(x)).mean(1))


class SumOfHeads(nn.Module):
    """Units at the same place in both heads are added, so that they change places alike."""

    symmetries = plain(a=4)

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.fc = nn.Linear(3, WIDTH), nn.Linear(3, WIDTH), nn.Linear(1, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        first, second = (layer(x[:, 0]).unflatten(1, (HEADS, -1)).relu().sum(1) for layer in (self.a, self.b))
        return self.fc((first * second).sum(1, keepdim=True))


class MeanOfHeads(nn.Module):
    """Each head becomes a unit, so that heads change places, and the units in each."""

    symmetries: Symmetries = ((2, {"a": 4, "fc": 1}),)

    def __init__(self) -> None:
        super().__init__()
        self.a, self.fc = nn.Linear(3, WIDTH), nn.Linear(HEADS, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.a(x[:, 0]).unflatten(1, (HEADS, -1)).relu().mean(2))


class Encoder(nn.Module):
    symmetries: Symmetries = (
        *plain(into=8),
        (2, {"layers.layers.0.self_attn:qk": 4, "layers.layers.0.self_attn:vo": 4}),
        (6, {"layers.layers.0.linear1": 1}),
    )

    def __init__(self) -> None:
        super().__init__()
        layer = nn.TransformerEncoderLayer(WIDTH, HEADS, 6, batch_first=True, norm_first=True)
        self.into, self.fc = nn.Linear(3, WIDTH), nn.Linear(WIDTH, CLASSES)
        self.layers = nn.TransformerEncoder(layer, 1, nn.LayerNorm(WIDTH), enable_nested_tensor=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.layers(self.into(x)).mean(1))


class Bidirectional(nn.Module):
    symmetries = tuple((4, {f"rnn:l{layer}{end}": 1}) for layer in range(2) for end in ("", "_reverse"))

    def __init__(self) -> None:
        super().__init__()
        self.rnn = nn.LSTM(3, 4, 2, batch_first=True, bidirectional=True)
        self.fc = nn.Linear(8, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        out, _ = self.rnn(x)
        return self.fc(out[:, -1])


class LastState(nn.Module):
    symmetries: Symmetries = (
        (4, {"rnn:l0": 1}),
        (4, {"rnn:l1": 1}),
    )

    def __init__(self) -> None:
        super().__init__()
        self.rnn, self.fc = nn.GRU(3, 4, 2, batch_first=True), nn.Linear(4, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        _, last = self.rnn(x)
        return self.fc(last[-1])


class Buffers(nn.Module):
    """The buffers of a norm with which it computes step by step move with the channels."""

    symmetries = plain(a=6)

    def __init__(self) -> None:
        super().__init__()
        self.a, self.norm, self.fc = nn.Conv2d(3, 6, 1), FrozenBatchNorm2d(6), nn.Linear(6, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.norm(self.a(x)).relu().mean((2, 3)))


class Shuffle(nn.Module):
    """A convolution of two groups, whose channels are shuffled as in ShuffleNet."""

    symmetries = plain(b=4)

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.fc = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 8, 1, groups=2), nn.Linear(8, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = self.b(functional.relu(self.a(x)))
        n, channels, height, width = x.shape
        x = x.view(n, 2, channels // 2, height, width).transpose(1, 2).reshape(n, channels, height, width)
        return self.fc(functional.adaptive_avg_pool2d(functional.relu(x), 1).flatten(1))


class Grouped(nn.Module):
    """Each input channel of a depthwise convolution gives two, and four of those make a group."""

    symmetries: Symmetries = ((4, {"a": 1, "c": 4}),)

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 16, 3, groups=8)
        self.c, self.fc = nn.Conv2d(16, 16, 1, groups=4), nn.Linear(16 * 36, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(functional.relu(self.c(functional.relu(self.b(self.a(x).relu())))).flatten(1))


class DifferentGroups(nn.Module):
    """A residual stream in two groups and in four: units can only change places within the four."""

    symmetries: Symmetries = (
        (2, {"a:0": 6}),
        (2, {"a:1": 6}),
    )

    def __init__(self) -> None:
        super().__init__()
        self.a, self.norm1, self.b = nn.Conv2d(3, 24, 1), nn.GroupNorm(2, 24), nn.Conv2d(24, 24, 1)
        self.norm2, self.fc = nn.GroupNorm(4, 24), nn.Linear(24, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = functional.relu(self.norm1(self.a(x)))
        return self.fc(functional.relu(x + self.norm2(self.b(x))).amax((2, 3)))


class GroupsWithinGroups(nn.Module):
    """The four groups of a convolution lie in the two of a normalisation, and change places within these only."""

    symmetries: Symmetries = (
        (2, {"a:0": 1, "b:0": 2}),
        (2, {"a:1": 1, "b:1": 2}),
    )

    def __init__(self) -> None:
        super().__init__()
        self.a, self.norm, self.b = nn.Conv2d(3, 8, 1), nn.GroupNorm(2, 8), nn.Conv2d(8, 8, 3, groups=4)
        self.fc = nn.Linear(8, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.b(functional.relu(self.norm(self.a(x)))).relu().mean((2, 3)))


class Unflattened(nn.Module):
    symmetries = plain(a=4)

    def __init__(self) -> None:
        super().__init__()
        self.a, self.split, self.b = nn.Linear(3, 36), nn.Unflatten(1, (4, 3, 3)), nn.Conv2d(4, CLASSES, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.b(self.split(self.a(x[:, 0])).relu()).flatten(1)


class Functional(nn.Module):
    """Parameters without a module, and many functions."""

    symmetries: Symmetries = (
        (6, {"a": 1}),
        (4, {"transposed": 1}),
    )

    def __init__(self) -> None:
        super().__init__()
        self.a, self.gate, self.prelu, self.norm = (
            nn.Linear(3, 12),
            nn.GLU(),
            nn.PReLU(6),
            nn.InstanceNorm1d(6, affine=True),
        )
        self.transposed, self.rms = nn.ConvTranspose1d(6, 4, 3), nn.RMSNorm(4)
        self.scale, self.weight = nn.Parameter(torch.randn(4)), nn.Parameter(torch.randn(CLASSES, 4))

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.prelu(self.gate(self.a(x)).transpose(1, 2)))
        x = functional.normalize(self.rms(self.transposed(x).transpose(1, 2)) * self.scale, dim=-1)
        return functional.linear(x.max(1)[0], self.weight)


class InPlace(nn.Module):
    symmetries = plain(a=6)

    def __init__(self) -> None:
        super().__init__()
        self.a, self.relu, self.b, self.c = nn.Linear(3, 6), nn.ReLU(inplace=True), nn.Linear(6, 6), nn.Linear(6, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.a(x)
        self.relu(x)
        y = self.b(x)
        y += x
        y.relu_()
        return self.c(y)


class Sorted(nn.Module):
    """What is sorted has no rule, so that the units before and after stay."""

    symmetries = plain(a=6)

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Linear(3, 6), nn.Linear(6, 4), nn.Linear(4, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        return self.c(torch.sort(self.b(self.a(x).relu()), -1).values)


class Neighbours(nn.Module):
    """What becomes of a unit depends on its place, after pooling over units and where only each other one is kept."""

    symmetries = plain(a=7)

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Linear(3, 7), nn.Linear(7, 6), nn.Linear(7, 6)
        self.fc = nn.Linear(6, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = self.a(x).relu()
        pooled, reversed_ = functional.max_pool1d(self.b(x), 2), self.c(x).flip(2)[:, :, ::2]
        return self.fc(torch.cat([pooled, reversed_], dim=-1)).mean(1)


class OuterProduct(nn.Module):
    """Two orders cannot both move along one axis."""

    symmetries = plain(b=3)

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.fc = nn.Linear(3, 4), nn.Linear(3, 3), nn.Linear(12, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = x[:, 0]
        return self.fc((self.a(x)[:, :, None] * self.b(x)[:, None]).tanh().flatten(1))


class Places(nn.Module):
    """The place of the largest unit is an output."""

    symmetries = plain(b=3)

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.fc = nn.Linear(3, 7), nn.Linear(2, 3), nn.Linear(3, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        largest, place = self.a(x[:, 0]).max(1)
        return self.fc(self.b(torch.stack([largest, place.to(largest)], 1)).relu())


class WeightsOfHeads(nn.Module):
    """The attention of each head is an output, so that heads stay where they are, and units move within them."""

    symmetries: Symmetries = (
        *plain(into=8),
        *((4, {f"attention:{role}{i}": 1}) for role in ("qk", "vo") for i in range(2)),
    )

    def __init__(self) -> None:
        super().__init__()
        self.into, self.attention = nn.Linear(3, WIDTH), nn.MultiheadAttention(WIDTH, HEADS, batch_first=True)
        self.heads, self.fc = nn.Linear(HEADS, CLASSES), nn.Linear(WIDTH, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = self.into(x)
        attended, weights = self.attention(x, x, x, average_attn_weights=False)
        return self.fc(x + attended).mean(1) + self.heads(weights.square().sum((2, 3)))


class Overridden(nn.Module):
    """A module whose forward was replaced does not do what its type does."""

    symmetries = plain()

    def __init__(self) -> None:
        super().__init__()
        self.a, self.relu, self.fc = nn.Linear(3, 6), nn.ReLU(), nn.Linear(6, CLASSES)
        self.relu.forward = lambda x: x.cumsum(-1)  # type: ignore[method-assign]

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.relu(self.a(x[:, 0])))


class Branching(nn.Module):
    """Depends on the values, so that it cannot be traced."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(6, 6)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(x) if bool(x.mean() > 0) else self.fc(x).tanh()


class WithBranch(nn.Module):
    """A module that cannot be traced keeps its weights and those beside it in place, but not what is elsewhere."""

    symmetries = plain(d=7)

    def __init__(self) -> None:
        super().__init__()
        self.a, self.branch, self.c = nn.Linear(3, 6), Branching(), nn.Linear(6, CLASSES)
        self.d, self.e = nn.Linear(6, 7), nn.Linear(7, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = self.a(x).relu()
        return self.c(self.branch(x)) + self.e(self.d(x).relu())


class SharedWithBranch(nn.Module):
    """The weights of a module that cannot be traced are used elsewhere too, where they stay in place as well."""

    symmetries = plain(f=7)

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.f = nn.Linear(3, 6), nn.Linear(7, 6), nn.Linear(3, 7)
        self.shared, self.branch = nn.Linear(6, 6), Branching()
        self.branch.fc = self.shared
        self.c, self.e = nn.Linear(6, CLASSES), nn.Linear(6, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        shared = self.shared(self.b(self.f(x).relu()).relu())
        return self.c(self.branch(self.a(x).relu())) + self.e(shared.relu())


class Parametrised(nn.Module):
    """Weights that are computed from others have no rule."""

    symmetries = plain(b=8)

    def __init__(self) -> None:
        super().__init__()
        self.a: Any = nn.utils.parametrizations.weight_norm(nn.Linear(3, 6))
        self.b, self.c = nn.Linear(6, 8), nn.Linear(8, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        return self.c(self.b(self.a(x).relu()).relu())


IMAGES = (
    *(SqueezeExcitation, Dense, PaddedShortcut, ConcatenatedShortcut, PaddedOnOneSide, Buffers, Shuffle, Grouped),
    *(DifferentGroups, GroupsWithinGroups),
)
SEQUENCES = (
    *(
        Attention,
        SplitAttention,
        HeadsAsOutputs,
        Mixture,
        NormalisedQueries,
        SumOfHeads,
        MeanOfHeads,
        Encoder,
        Bidirectional,
        LastState,
    ),
    *(
        Unflattened,
        Functional,
        InPlace,
        Sorted,
        Neighbours,
        OuterProduct,
        Places,
        WeightsOfHeads,
        Overridden,
        WithBranch,
        SharedWithBranch,
        Parametrised,
    ),
)
ARCHITECTURES = (*IMAGES, *SEQUENCES, TiedEmbedding)


def inputs_of(kind: type[nn.Module]) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    if kind is TiedEmbedding:
        return torch.randint(7, (2, 5), generator=generator)
    shape = (2, 3, 8, 8) if kind in IMAGES else (2, 6, 3)
    return torch.randn(shape, generator=generator, dtype=torch.float64)
