import copy
import math

import numpy as np
import pytest
import torch
from torch import nn

from fedsim.models.architectures import MODELS
from fedsim.models.architectures.gpt import CausalSelfAttention
from fedsim.models.layers import Layers
from fedsim.models.params import state_of
from fedsim.training import SGD, LocalPlan, recompute_buffers_, train_
from fedsim.training.dropout import SeededDropout, random_words, seeded_dropout_, seeded_modules, set_streams_, streams

DROPOUTS = {
    nn.Dropout: (8, 6, 5, 4),
    nn.Dropout1d: (8, 6, 5),
    nn.Dropout2d: (8, 6, 5, 4),
    nn.Dropout3d: (8, 6, 5, 4, 3),
}


def kept(stream: int, n: int, call: int = 0, p: float = 0.5) -> torch.Tensor:
    """Whether each of n positions is kept, as 0 and 1."""
    return (random_words(torch.tensor(stream), call, (n,)) >= p * 2**32 - 2**31).double()


def seeded(p: float, stream: int = 7, kind: type = nn.Dropout) -> SeededDropout:
    model = nn.Sequential(kind(p))
    seeded_dropout_(model)
    set_streams_([model[0]], torch.tensor([stream]))
    return model[0]


@pytest.mark.parametrize("p", [0.1, 0.5, 0.8])
def test_the_share_that_is_dropped_is_p_for_small_and_for_large_numbers_of_streams(p: float) -> None:
    n = 20_000
    for stream in (0, 1, 2**32, 2**62 + 12345):
        share = 1 - float(kept(stream, n, p=p).mean())
        assert abs(share - p) < 4.5 * math.sqrt(p * (1 - p) / n)


def correlation(one: torch.Tensor, other: torch.Tensor) -> float:
    """Return the correlation in standard deviations of that of independent masks."""
    return float(torch.corrcoef(torch.stack([one, other]))[0, 1]) * math.sqrt(len(one))


def test_masks_of_clients_steps_modules_and_calls_are_independent() -> None:
    n = 20_000
    epochs, steps = np.array([11, 11, 12, 2**62]), np.array([0, 1, 0, 0])  # two steps, and other clients
    numbers = streams(epochs, steps, 3)
    assert len(set(numbers.flatten().tolist())) == numbers.size
    masks = [kept(int(number), n) for number in numbers.flatten()]
    masks += [kept(5, n, call) for call in range(4)] + [kept(6, n), kept(5 + 2**32, n), kept(5 + 2**31, n)]
    found = [correlation(one, other) for i, one in enumerate(masks) for other in masks[:i]]
    assert max(map(abs, found)) < 4.5
    assert np.std(found) == pytest.approx(1, abs=0.25)


def test_positions_of_a_mask_are_independent() -> None:
    mask = kept(streams(np.array([3]), np.array([0]), 1).item(), 50_000)
    for lag in (1, 2, 3, 8, 10, 28, 32, 64, 784, 1024, 4096):
        assert abs(correlation(mask[lag:], mask[:-lag])) < 4.5
    runs = mask.view(-1, 8) @ 2.0 ** torch.arange(8, dtype=torch.float64)
    observed = torch.bincount(runs.long(), minlength=256).double()
    expected = len(runs) / 256
    statistic = float(((observed - expected) ** 2 / expected).sum())  # chi-squared, 255 degrees of freedom
    assert abs(statistic - 255) < 4.5 * math.sqrt(2 * 255)


def test_all_bits_of_the_words_are_fair() -> None:
    words = random_words(torch.tensor(99), 0, (20_000,))
    assert words.dtype == torch.int32
    for bit in range(32):
        assert abs(float(((words >> bit) & 1).double().mean()) - 0.5) < 4.5 * 0.5 / math.sqrt(20_000)


def test_the_words_are_those_of_the_hash_in_whole_numbers() -> None:
    def scrambled(x: int) -> int:
        x = (x ^ x >> 16) * 0x7FEB352D % 2**32
        x = (x ^ x >> 15) * 0x846CA68B % 2**32
        return x ^ x >> 16

    stream, call = 0x1234_5678_9ABC_DEF0, 3
    low, high = (stream % 2**32) ^ (call * 0x9E3779B9 % 2**32), stream >> 32
    expected = [scrambled(scrambled(position ^ low) ^ high) for position in range(12)]
    found = random_words(torch.tensor(stream), call, (3, 4)).flatten().tolist()
    assert [word % 2**32 for word in found] == expected


def test_the_streams_are_those_of_splitmix64() -> None:
    # The first numbers of SplitMix64 from state 1234567, as in Rosetta Code; ours drop the last bit.
    first = [6457827717110365317, 3203168211198807973, 9817491932198370423]
    assert streams(np.array([1234567] * 3), np.arange(3), 1)[:, 0].tolist() == [number >> 1 for number in first]
    assert streams(np.array([1234567]), np.array([0]), 3)[0].tolist() == [number >> 1 for number in first]


@pytest.mark.parametrize("kind", DROPOUTS)
def test_what_is_kept_is_scaled_and_whole_channels_are_dropped_where_torch_does(kind: type) -> None:
    x = torch.rand(DROPOUTS[kind], generator=torch.Generator().manual_seed(0)) + 1
    module = seeded(0.5, kind=kind)
    ratio = module(x) / x
    assert set(ratio.unique().tolist()) == {0.0, 2.0}
    torch.manual_seed(0)
    theirs = kind(0.5)(x) / x
    for channels in (ratio, theirs):
        alike = (channels.flatten(2) == channels.flatten(2)[:, :, :1]).all()
        assert alike == (kind is not nn.Dropout)
    module.calls = 0
    assert torch.equal(module(x), ratio * x)


def test_a_single_example_without_a_batch_loses_whole_channels_too() -> None:
    x = torch.ones(64, 5)
    ratio = seeded(0.5, kind=nn.Dropout1d)(x)
    assert (ratio == ratio[:, :1]).all()
    assert 0 < ratio[:, 0].mean() < 2


@pytest.mark.parametrize("p", [0.0, 0.3, 1.0])
def test_evaluation_is_the_identity_and_so_is_training_with_nothing_to_drop(p: float) -> None:
    x = torch.ones(1000)
    module = seeded(p)
    assert torch.equal(module.eval()(x), x)
    assert torch.equal(module.train()(x), x) == (p == 0)
    if p == 1:
        assert not module(x).any()


def test_gradients_go_through_what_is_kept() -> None:
    x = torch.ones(100, requires_grad=True)
    y = seeded(0.5)(x)
    y.sum().backward()
    assert torch.equal(x.grad, y.detach())


def test_a_padded_batch_has_the_masks_of_the_shorter_one() -> None:
    module, x = seeded(0.5), torch.ones(6, 3)
    whole = module(x)
    module.calls = 0
    assert torch.equal(module(x[:4]), whole[:4])


def test_each_use_of_a_module_within_a_step_has_a_mask_of_its_own() -> None:
    module, x = seeded(0.5), torch.ones(100)
    first, second = module(x), module(x)
    assert not torch.equal(first, second)
    set_streams_([module], torch.tensor([7]))
    assert torch.equal(module(x), first)


def test_under_vmap_each_member_has_the_mask_of_its_stream() -> None:
    module, x, numbers = seeded(0.4), torch.ones(3, 50), torch.tensor([3, 4, 2**60])

    def forward(stream: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        return torch.func.functional_call(module, {"stream": stream}, (x,))

    together = torch.vmap(forward)(numbers, x)
    for number, row in zip(numbers, together, strict=True):
        set_streams_([module], number[None])
        assert torch.equal(module(x[0]), row)


class Twice(nn.Module):
    """A model with all that can be replaced, and one dropout under two names."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(4, 4)
        self.first = self.again = nn.Dropout(0.5)
        self.rest = nn.Sequential(nn.Dropout1d(0.2), nn.ModuleList([nn.Dropout2d(0.1), nn.Dropout3d(0.0)]))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.again(self.fc(self.first(x)))


def test_replacing_keeps_the_state_dict_the_layers_and_shared_modules() -> None:
    model = Twice().eval()
    before = copy.deepcopy(model)
    seeded_dropout_(model)
    assert list(model.state_dict()) == list(before.state_dict())
    assert list(state_of(model)) == list(state_of(before))
    assert Layers.of(model).names == Layers.of(before).names
    model.load_state_dict(before.state_dict())
    assert model.first is model.again
    assert [type(module) for module in model.rest[1]] == [SeededDropout] * 2
    assert isinstance(model.first, nn.Dropout)
    assert not model.first.training
    assert list(seeded_modules(model)) == ["first", "rest.0", "rest.1.0"]


def test_a_subclass_of_the_users_own_is_left_alone() -> None:
    class Own(nn.Dropout):
        pass

    model = nn.Sequential(Own(0.5))
    seeded_dropout_(model)
    assert type(model[0]) is Own


def classifier() -> nn.Module:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 40), nn.Dropout(0.5), nn.Linear(40, 3), nn.Dropout(0.1)).double()
    seeded_dropout_(model)
    return model


def trained(model: nn.Module, seed: int = 3, epochs: int = 2) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    inputs = torch.randn(10, 6, generator=generator, dtype=torch.float64)
    targets = torch.randint(3, (10,), generator=generator)
    train_(model, inputs, targets, LocalPlan(), SGD(epochs, 5, 0.1), np.random.default_rng(seed))
    return model.state_dict()


def equal(one: dict, other: dict) -> bool:
    return all(torch.equal(one[key], other[key]) for key in one)


def test_training_draws_its_masks_from_the_clients_stream_and_from_nothing_else() -> None:
    reference = trained(classifier())
    other = classifier()
    trained(other, seed=9)  # what was trained before leaves no trace
    other.load_state_dict(classifier().state_dict())
    before = torch.get_rng_state()
    assert equal(trained(other), reference)
    assert torch.equal(torch.get_rng_state(), before)
    assert not equal(trained(classifier(), seed=4), reference)


def test_each_step_has_masks_of_its_own() -> None:
    model, seen = classifier(), []
    model[1].register_forward_hook(lambda module, inputs, output: seen.append(output == 0))
    trained(model)
    assert len({mask.numpy().tobytes() for mask in seen}) == len(seen) == 4


def test_a_model_without_dropout_draws_no_more_numbers_than_before() -> None:
    def left(dropout: float) -> float:
        rng = np.random.default_rng(0)
        model = nn.Sequential(nn.Linear(6, 3), nn.Dropout(dropout))
        seeded_dropout_(model)
        train_(model, torch.ones(5, 6), torch.zeros(5, dtype=torch.int64), LocalPlan(), SGD(batch_size=5), rng)
        return rng.random()

    rng = np.random.default_rng(0)
    rng.permutation(5)
    expected = rng.random()
    assert left(0.0) == expected
    assert left(0.5) != expected


def test_recomputed_statistics_see_the_same_masks_each_time() -> None:
    model = nn.Sequential(nn.Dropout(0.5), nn.BatchNorm1d(4))
    seeded_dropout_(model)
    inputs = torch.randn(20, 4, generator=torch.Generator().manual_seed(0))
    found = []
    for _ in range(2):
        recompute_buffers_(model, inputs, 5)
        found.append(model[1].running_mean.clone())
    assert torch.equal(*found)


@pytest.mark.parametrize(
    ("name", "shape", "options", "modules"),
    [("gpt", (6,), {"depth": 1, "heads": 2, "width": 8}, 4), ("mobilenet", (1, 16, 16), {"width": 0.25}, 1)],
)
def test_our_models_draw_nothing_from_the_global_stream(
    name: str, shape: tuple[int, ...], options: dict, modules: int
) -> None:
    model = MODELS[name](shape, 5, dropout=0.2, **options)
    seeded_dropout_(model)
    assert len(seeded_modules(model)) == modules
    inputs = torch.ones(3, *shape, dtype=torch.int64 if len(shape) == 1 else torch.float32)
    before = torch.get_rng_state()
    model.train()(inputs)
    assert torch.equal(torch.get_rng_state(), before)


def test_attention_with_dropout_is_attention_with_a_share_of_the_weights_dropped() -> None:
    torch.manual_seed(0)
    layer, x = CausalSelfAttention(2, 8, 0.5).double(), torch.randn(3, 6, 8, dtype=torch.float64)
    layer.resid_dropout.p = 0.0
    weights: list[torch.Tensor] = []
    layer.attn_dropout.register_forward_hook(lambda module, inputs, output: weights.append(inputs[0]) or inputs[0])
    assert torch.allclose(layer.train()(x), layer.eval()(x), atol=1e-12)  # the hook drops nothing
    assert torch.allclose(weights[0].sum(-1), torch.ones(3, 2, 6, dtype=torch.float64))
    assert not weights[0].triu(1).any()
