"""Heads are matched up to all invertible matrices: balanced factors that differ by rotations alone."""

from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call

from fedsim.alignment.matched import match_models
from fedsim.alignment.matching.weight_matching import match_weights
from fedsim.alignment.symmetries.factors import balance_factors, warn_once
from fedsim.alignment.symmetries.normal_form import normal_form
from fedsim.alignment.symmetries.norms import absorb_norms
from fedsim.alignment.symmetries.permutations import Spec, permute, random_permutation
from fedsim.alignment.symmetries.rotation_spec import rotation_spec
from fedsim.models.architectures.gpt import gpt
from fedsim.models.params import Params, state_of
from tests.alignment.test_rotations import MODELS, difference, drawn, furthest
from tests.alignment.test_transformers import TOKENS, build, in_float64

ONE_HEAD = partial(gpt, (8,), 20, depth=1, heads=1, width=8, tied=False)
CASES = MODELS | {"gpt with one head": (ONE_HEAD, MODELS["gpt"][1])}
HEADS = {"gpt": 2, "untied gpt": 2, "vit": 4, "vit with one head": 1, "gpt with one head": 1}
BLOCK = {"gpt": "h.{}.attn.", "vit": "encoder.layers.encoder_layer_{}.self_attention."}


def invertible(heads: int, width: int, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.eye(width) + 0.4 * torch.randn(heads, width, width, generator=generator, dtype=torch.float64)


def multiplied(rows: Tensor, matrices: Tensor) -> Tensor:
    """Return rows [heads * width, ...] with those of each head multiplied by its matrix."""
    return torch.cat([m @ part for m, part in zip(matrices, rows.chunk(len(matrices)), strict=True)])


def stretched(name: str, params: Params, blocks: int) -> Params:
    """Return a copy whose heads have been multiplied by matrices that are no rotations, written out by hand."""
    found, packed = dict(params), "c_attn.{}" if "gpt" in name else "in_proj_{}"
    for block in range(blocks):
        prefix = BLOCK["gpt" if "gpt" in name else "vit"].format(block)
        out = prefix + ("c_proj.weight" if "gpt" in name else "out_proj.weight")
        width = len(params[out])
        g, h = (invertible(HEADS[name], width // HEADS[name], 2 * block + i) for i in (0, 1))
        for key in (prefix + packed.format("weight"), prefix + packed.format("bias")):
            q, k, v = params[key].chunk(3)
            found[key] = torch.cat([multiplied(q, g), multiplied(k, g.inverse().mT), multiplied(v, h)])
        found[out] = multiplied(params[out].T, h.inverse().mT).T.contiguous()
    return found


@pytest.mark.parametrize("name", CASES)
def test_a_copy_with_stretched_heads_is_recovered_where_rotations_do_not_find_it(name: str) -> None:
    make, inputs = CASES[name]
    torch.manual_seed(0)
    model = make().eval()
    spec = rotation_spec(model, inputs.float() if inputs.is_floating_point() else inputs, balanced=True)
    model, params = model.double(), drawn(model, 0)
    blocks = 1 if "one head" in name else 2
    assert len(spec.factors) == 2 * blocks
    copy = stretched(name, params, blocks)
    with torch.no_grad():
        expected, of_copy = (functional_call(model, each, (inputs,)) for each in (params, copy))
        first, second = (normal_form(each, spec) for each in (params, copy))
        assert difference(expected, of_copy) < 1e-10
        assert difference(expected, functional_call(model, first, (inputs,))) < 1e-10
        second = permute(second, spec, random_permutation(spec, np.random.default_rng(0)))
        assert difference(expected, functional_call(model, second, (inputs,))) < 1e-10
    found = match_weights(spec, first, second, rng=np.random.default_rng(0))
    assert furthest(permute(second, spec, found.permutation), first) < 1e-10
    rotated = replace(spec, factors=())
    first, second = (normal_form(each, rotated) for each in (params, copy))
    found = match_weights(rotated, first, second, rng=np.random.default_rng(0))
    assert furthest(permute(second, rotated, found.permutation), first) > 0.1


def test_of_all_factors_with_one_product_the_balanced_ones_are_smallest() -> None:
    make, inputs = MODELS["untied gpt"]
    spec = rotation_spec(make().eval(), inputs, balanced=True)
    params = drawn(make(), 1)
    balanced = balance_factors(params, spec.factors)

    def square(values: Params) -> float:
        return sum(float(value.square().sum()) for value in values.values())

    assert square(balanced) < square(params)
    assert square(balanced) < square(stretched("untied gpt", balanced, 2))
    again = balance_factors(balanced, spec.factors)
    assert furthest(again, balanced) < 1e-12
    q, k, _ = balanced["h.0.attn.c_attn.weight"].chunk(3)
    bq, bk, _ = balanced["h.0.attn.c_attn.bias"].chunk(3)
    for rows in ((0, 8), (8, 16)):
        a, b = (torch.cat([w[slice(*rows)], v[slice(*rows), None]], 1) for w, v in ((q, bq), (k, bk)))
        torch.testing.assert_close(a @ a.T, b @ b.T, rtol=1e-12, atol=1e-12)


def turned(value: Tensor, heads: int, numbers: Tensor) -> Tensor:
    """Return rows [heads * width, ...] whose pairs half a width apart are multiplied by numbers [heads, pairs]."""
    rows = value.reshape(heads, 2, numbers.shape[1], -1)
    product = torch.complex(rows[:, 0], rows[:, 1]) * numbers[..., None]
    return torch.stack([product.real, product.imag], 1).reshape(value.shape)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "key_heads"), [("llama", 4), ("grouped llama", 2)])
def test_rotary_positions_leave_a_modulus_and_a_phase_per_pair(tmp_path: Path, name: str, key_heads: int) -> None:
    model = build(tmp_path, name)
    spec = rotation_spec(model, TOKENS, balanced=True)
    assert [each.kind for each in spec.factors] == ["modulus", "invertible"] * 2
    model = in_float64(model)
    params = drawn(model, 0)
    copy, generator = dict(params), torch.Generator().manual_seed(0)
    for block in (0, 1):
        u = torch.randn(key_heads, 2, generator=generator, dtype=torch.complex128)
        prefix = f"model.layers.{block}.self_attn."
        for key in (each for each in params if each.startswith(prefix)):
            if "q_proj" in key:
                copy[key] = turned(params[key], 4, u.repeat_interleave(4 // key_heads, 0))
            elif "k_proj" in key:
                copy[key] = turned(params[key], key_heads, 1 / u.conj())
    with torch.no_grad():
        expected = functional_call(model, params, (TOKENS,))
        first, second = (normal_form(each, spec) for each in (params, copy))
        for each in (copy, first, second):
            assert difference(expected, functional_call(model, each, (TOKENS,))) < 1e-10
    second = permute(second, spec, random_permutation(spec, np.random.default_rng(0)))
    found = match_weights(spec, first, second, rng=np.random.default_rng(0))
    assert furthest(permute(second, spec, found.permutation), first) < 1e-10


class Normalised(nn.Module):
    """Attention whose queries and keys have length 1, which rotations keep and other matrices do not."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv, self.out, self.head = nn.Linear(8, 24), nn.Linear(8, 8), nn.Linear(8, 3)

    def forward(self, inputs: Tensor) -> Tensor:
        query, key, value = self.qkv(inputs).unflatten(2, (3, 2, 4)).permute(2, 0, 3, 1, 4).unbind(0)
        query, key = (each / each.square().sum(3, keepdim=True).sqrt() for each in (query, key))
        attended = (query @ key.transpose(2, 3)).softmax(3) @ value
        return self.head(torch.relu(self.out(attended.transpose(1, 2).flatten(2)).mean(1)))


def normalised_spec() -> Spec:
    torch.manual_seed(0)
    return rotation_spec(Normalised(), torch.randn(2, 5, 8), balanced=True)


def test_factors_that_the_model_does_not_only_multiply_are_not_balanced() -> None:
    spec = normalised_spec()
    kinds = {name: each.kind for symmetry in spec.symmetries for each, name, _ in symmetry.parts}
    assert kinds == {"qkv:qk": "orthogonal", "qkv:vo": "orthogonal"}
    [factors] = spec.factors
    assert {rows.key for side in factors.sides for rows in side} == {"qkv.weight", "qkv.bias", "out.weight"}


def gpt_of_two_heads() -> tuple[nn.Module, Spec, Tensor]:
    make, inputs = MODELS["gpt"]
    model = make().eval()
    return model.double(), rotation_spec(model.float(), inputs, balanced=True), inputs


@pytest.mark.parametrize("damage", ["equal rows", "no queries and keys", "no projection"])
def test_a_head_whose_units_depend_on_each_other_stays_as_it_is(damage: str, caplog: pytest.LogCaptureFixture) -> None:
    model, spec, inputs = gpt_of_two_heads()
    params = drawn(model.double(), 0)
    prefix = "h.0.attn."
    weight, bias, out = (params[prefix + key].clone() for key in ("c_attn.weight", "c_attn.bias", "c_proj.weight"))
    if damage == "equal rows":
        weight[1], bias[1] = weight[0], bias[0]
    elif damage == "no queries and keys":
        weight[:8], weight[16:24], bias[:8], bias[16:24] = 0, 0, 0, 0
    else:
        out[:, :8] = 0
    params |= {prefix + "c_attn.weight": weight, prefix + "c_attn.bias": bias, prefix + "c_proj.weight": out}
    warn_once.cache_clear()
    found = normal_form(params, spec)
    normal_form(params, spec)
    with torch.no_grad():
        expected, left = (functional_call(model, each, (inputs,)) for each in (params, found))
    assert difference(expected, left) < 1e-10
    queries, values = slice(0, 8), slice(32, 40)
    now = found[prefix + "c_attn.weight"]
    damaged, other = (values, queries) if damage == "no projection" else (queries, values)
    absorbed = absorb_norms(params, spec.norms)[prefix + "c_attn.weight"]
    assert torch.equal(now[damaged], absorbed[damaged])
    assert not torch.allclose(now[other], absorbed[other], atol=1e-3)
    # The second head is balanced all the same.
    assert not torch.allclose(now[8:16], absorbed[8:16], atol=1e-3)
    [warning] = caplog.messages
    assert warning.startswith(f"a head of {prefix}c_attn.weight, {prefix}c_attn.bias")


def test_an_entry_that_is_not_finite_is_refused() -> None:
    model, spec, _ = gpt_of_two_heads()
    key, params = "h.0.attn.c_attn.weight", state_of(model)
    broken = params[key].clone()
    broken[1] = torch.nan
    with pytest.raises(ValueError, match=rf"^{key} has an entry that is not finite; match models that have not"):
        normal_form(params | {key: broken}, spec)


class Apart(nn.Module):
    """Attention whose projections are parameters of one module, with heads of some width."""

    def __init__(self, head: int = 4, *, bias: bool = False) -> None:
        super().__init__()
        for name, shape in {"q": (2 * head, 8), "k": (2 * head, 8), "v": (2 * head, 8), "o": (8, 2 * head)}.items():
            setattr(self, f"w{name}", nn.Parameter(torch.randn(shape)))
        for name in "kqv" if bias else "":  # not in the order of the weights
            setattr(self, f"b{name}", nn.Parameter(torch.randn(2 * head)))
        self.head = nn.Linear(8, 3)

    def forward(self, inputs: Tensor) -> Tensor:
        query, key, value = (
            nn.functional.linear(inputs, getattr(self, f"w{name}"), getattr(self, f"b{name}", None))
            .unflatten(2, (2, -1))
            .transpose(1, 2)
            for name in "qkv"
        )
        attended = nn.functional.scaled_dot_product_attention(query, key, value).transpose(1, 2).flatten(2)
        return self.head(torch.relu(nn.functional.linear(attended, self.wo)).mean(1))


class Cross(nn.Module):
    """Attention to inputs of another width, whose projections are three tensors with one tensor of biases, if any."""

    def __init__(self, *, bias: bool) -> None:
        super().__init__()
        self.context = nn.Linear(8, 6)
        self.a = nn.MultiheadAttention(8, 2, batch_first=True, kdim=6, vdim=6, bias=bias)
        self.head = nn.Linear(8, 3)

    def forward(self, inputs: Tensor) -> Tensor:
        context = self.context(inputs)
        return self.head(torch.relu(self.a(inputs, context, context, need_weights=False)[0]).mean(1))


@pytest.mark.parametrize("name", ["apart", "apart with biases", "cross", "cross without biases"])
def test_each_weight_is_balanced_with_its_own_bias(name: str) -> None:
    torch.manual_seed(0)
    bias = name in {"apart with biases", "cross"}
    model = (Apart(bias=bias) if "apart" in name else Cross(bias=bias)).eval()
    inputs = torch.randn(2, 5, 8)
    spec = rotation_spec(model, inputs, balanced=True)
    assert [each.kind for each in spec.factors] == ["invertible"] * 2
    model, inputs, params = model.double(), inputs.double(), drawn(model.double(), 1)
    g, h = (invertible(2, 4, seed) for seed in (0, 1))
    matrices = dict(zip("qkvo", (g, g.inverse().mT, h, h.inverse().mT), strict=True))
    copy, out = dict(params), "wo" if "apart" in name else "a.out_proj.weight"
    for each in "qkv":
        for key in {f"w{each}", f"b{each}", f"a.{each}_proj_weight"} & params.keys():
            copy[key] = multiplied(params[key], matrices[each])
    if name == "cross":
        parts = zip(params["a.in_proj_bias"].chunk(3), "qkv", strict=True)
        copy["a.in_proj_bias"] = torch.cat([multiplied(part, matrices[each]) for part, each in parts])
    copy[out] = multiplied(params[out].T, matrices["o"]).T.contiguous()
    with torch.no_grad():
        expected = functional_call(model, params, (inputs,))
        first, second = (normal_form(each, spec) for each in (params, copy))
        for each in (copy, first, second):
            assert difference(expected, functional_call(model, each, (inputs,))) < 1e-10
    found = match_weights(spec, first, second, rng=np.random.default_rng(0))
    assert furthest(permute(second, spec, found.permutation), first) < 1e-10


def test_heads_wider_than_the_model_are_only_rotated_and_a_model_of_no_others_is_refused() -> None:
    torch.manual_seed(0)
    assert rotation_spec(Apart(12), torch.randn(2, 5, 8)).has_rotations
    with pytest.raises(ValueError, match=r"^model = Apart has no heads whose .*; match by rotations instead of inver"):
        rotation_spec(Apart(12), torch.randn(2, 5, 8), balanced=True)
    with pytest.raises(
        ValueError, match=r"^model = Apart has no units that .* within attention heads of two or more units; "
    ):
        rotation_spec(Apart(1), torch.randn(2, 5, 8), balanced=True)


def test_models_are_matched_up_to_invertible_matrices() -> None:
    make, inputs = MODELS["untied gpt"]
    torch.manual_seed(0)
    model = make().eval()
    params = {key: value.float() for key, value in drawn(model, 0).items()}
    copy = {key: value.float() for key, value in stretched("untied gpt", drawn(model, 0), 2).items()}
    generator = np.random.default_rng(0)
    first, second = match_models(model, [params, copy], "invertible", inputs, rng=generator).states
    assert furthest(first, second) < 1e-4
    first, second = match_models(model, [params, copy], "rotations", inputs, rng=generator).states
    assert furthest(first, second) > 0.1
