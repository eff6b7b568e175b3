"""The symmetries of transformers of Hugging Face, from tiny configurations and without a network."""

import re
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call

from fedsim.alignment.matched import match_models, spec_of
from fedsim.alignment.matching.weight_matching import match_weights
from fedsim.alignment.symmetries.norms import absorb_norms
from fedsim.alignment.symmetries.permutations import Spec, permute, random_permutation
from fedsim.alignment.symmetries.rotation_spec import rotation_spec
from fedsim.alignment.symmetries.rotations import rotation_key
from fedsim.models.architectures.huggingface import huggingface
from fedsim.models.asymmetry import Asymmetry, asymmetrise_
from fedsim.models.params import Params, state_of
from tests.alignment.test_rotations import difference, drawn, furthest

pytestmark = pytest.mark.slow
SIZES = {"num_hidden_layers": 2, "hidden_size": 16, "intermediate_size": 12, "num_attention_heads": 4}
WORDS = {"vocab_size": 20, "max_position_embeddings": 12, "pad_token_id": 0}
DECODER = SIZES | WORDS | {"is_decoder": True}
GPT2_SIZES = {"n_layer": 2, "n_embd": 16, "n_head": 4, "vocab_size": 20, "n_positions": 12, "eos_token_id": 0}
TOKENS = torch.tensor([[3, 4, 5, 6, 7, 8], [9, 2, 1, 4, 0, 0]])
# The configuration, the library's model, sizes, the task, what rotates, and the number of norms to absorb.
CASES: dict[str, tuple[str, str, dict[str, Any], str, set[str], int]] = {
    "bert": ("BertConfig", "BertForSequenceClassification", SIZES | WORDS, "classify", {"orthogonal"}, 0),
    "bert for words": ("BertConfig", "BertLMHeadModel", DECODER, "next-token", {"orthogonal"}, 0),
    "gpt2": ("GPT2Config", "GPT2LMHeadModel", GPT2_SIZES | {"bos_token_id": 0}, "next-token", {"orthogonal"}, 0),
    "gpt2 for classes": (
        "GPT2Config",
        "GPT2Model",
        GPT2_SIZES | {"bos_token_id": 0},
        "classify",
        {"orthogonal", "centred"},
        5,
    ),
    "llama": ("LlamaConfig", "LlamaForCausalLM", SIZES | WORDS, "next-token", {"orthogonal", "phases"}, 5),
    "grouped llama": (
        "LlamaConfig",
        "LlamaForCausalLM",
        SIZES | WORDS | {"num_key_value_heads": 2, "attention_bias": True},
        "next-token",
        {"orthogonal", "phases"},
        5,
    ),
    "vit": (
        "ViTConfig",
        "ViTForImageClassification",
        SIZES | {"image_size": 8, "patch_size": 4, "num_channels": 1},
        "classify",
        {"orthogonal", "centred"},
        5,
    ),
}


class Float64Norm(nn.Module):
    """Llama's norm without the library's step to float32."""

    def __init__(self, weight: nn.Parameter) -> None:
        super().__init__()
        self.weight = weight

    def forward(self, x: Tensor) -> Tensor:
        return self.weight * x * (x.square().mean(-1, keepdim=True) + 1e-6).rsqrt()


def build(folder: Path, name: str) -> nn.Module:
    transformers = pytest.importorskip("transformers")
    config, kind, sizes, task, _, _ = CASES[name]
    torch.manual_seed(0)
    getattr(transformers, kind)(getattr(transformers, config)(**sizes)).save_pretrained(folder)
    shape, vocabulary = ((1, 8, 8), 0) if name == "vit" else ((6,), 20)
    classes = 20 if task == "next-token" else 3
    return huggingface(shape, classes, path=str(folder), task=task, vocabulary=vocabulary).eval()


def inputs_of(name: str) -> Tensor:
    """Return two texts, or two images."""
    return torch.randn(2, 1, 8, 8, generator=torch.Generator().manual_seed(0)) if name == "vit" else TOKENS


def in_float64(model: nn.Module) -> nn.Module:
    model = model.double()
    for module in list(model.modules()):
        for child, norm in list(module.named_children()):
            if type(norm).__name__ == "LlamaRMSNorm":
                setattr(module, child, Float64Norm(norm.weight))
    return model


@pytest.fixture(scope="module", params=CASES)
def case(
    request: Any, tmp_path_factory: pytest.TempPathFactory
) -> tuple[str, Spec, Params, Callable[[Params], Tensor]]:
    model = build(tmp_path_factory.mktemp("model"), request.param)
    inputs = inputs_of(request.param)
    spec = rotation_spec(model, inputs)
    model = in_float64(model)
    if inputs.is_floating_point():
        inputs = inputs.double()

    def run(params: Params) -> Tensor:
        with torch.no_grad():
            return functional_call(model, params, (inputs,))

    return request.param, spec, drawn(model, 0), run


def test_what_rotates_follows_from_the_positions_and_the_norms(case: Any) -> None:
    name, spec, params, _ = case
    *_, kinds, norms = CASES[name]
    found = [each for symmetry in spec.symmetries for each in symmetry.rotations]
    stream = {"orthogonal"} if "llama" in name else set()
    assert {each.kind for each in found} | stream == kinds
    assert len(spec.norms) == norms
    assert ({"stream": 16} in [each.widths for each in spec.symmetries if each.rotations]) == bool(norms)
    floating = {key for key, value in params.items() if value.is_floating_point()}
    assert spec.axes.keys() == floating


def test_outputs_stay_when_units_move_and_rotate(case: Any) -> None:
    _, spec, params, run = case
    absorbed = absorb_norms(params, spec.norms)
    assert difference(run(params), run(absorbed)) < 1e-10
    for seed in range(3):
        turned = permute(absorbed, spec, random_permutation(spec, np.random.default_rng(seed)))
        # Phases of positions are float32 in the library, in both models alike.
        assert difference(run(params), run(turned)) < 1e-10
        assert furthest(absorbed, turned) > 0.5


def test_a_moved_and_rotated_copy_is_recovered(case: Any) -> None:
    _, spec, params, _ = case
    absorbed = absorb_norms(params, spec.norms)
    for seed in range(3):
        turned = permute(absorbed, spec, random_permutation(spec, np.random.default_rng(seed)))
        found = match_weights(spec, absorbed, turned, rng=np.random.default_rng(seed))
        assert furthest(permute(turned, spec, found.permutation), absorbed) < 1e-12


def test_the_objective_never_falls(case: Any) -> None:
    _, spec, params, run = case
    generator = np.random.default_rng(5)
    other = {key: torch.from_numpy(generator.normal(size=value.shape)) for key, value in params.items()}
    reference, other = (absorb_norms(each, spec.norms) for each in (params, other))
    found = match_weights(spec, reference, other, rng=np.random.default_rng(0))
    assert (np.diff(found.objective) > 0).all()
    assert len(found.objective) > 1
    assert difference(run(other), run(permute(other, spec, found.permutation))) < 1e-10


def test_grouped_query_heads_share_the_rotation_of_their_key_head(tmp_path: Path) -> None:
    spec = rotation_spec(build(tmp_path, "grouped llama"), TOKENS)
    drawn_ = random_permutation(spec, np.random.default_rng(0))
    key, query = (drawn_[rotation_key(f"model.layers.0:{each}")] for each in "kq")
    assert torch.equal(key.repeat_interleave(2, 0), query)
    # One phase per pair of units that are half a head apart.
    assert torch.equal(key, torch.eye(4).bool().logical_or(torch.eye(4).roll(2, 0).bool()) * key)


def test_an_arbitrary_rotation_does_not_commute_with_rotary_positions(tmp_path: Path) -> None:
    model = build(tmp_path, "llama")
    spec = rotation_spec(model, TOKENS, stream=False)
    params = drawn(in_float64(model), 0)
    run = partial(functional_call, model, args=(TOKENS,))
    wrong = random_permutation(spec, np.random.default_rng(0))
    turn = torch.linalg.qr(torch.randn(4, 4, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))).Q
    for each in "kq":
        wrong[rotation_key(f"model.layers.0:{each}")] = turn
    with torch.no_grad():
        assert difference(run(params), run(permute(params, spec, wrong))) > 1e-3


def test_each_head_is_balanced_for_invertible_matrices(tmp_path: Path) -> None:
    spec = rotation_spec(build(tmp_path, "vit"), inputs_of("vit"), balanced=True)
    layers = [f"vit.layers.{block}.attention.{pair}" for block in (0, 1) for pair in ("q k", "v o")]
    found = {tuple(sorted({rows.key for side in each.sides for rows in side})) for each in spec.factors}
    of_block = r"vit\.layers\.\d\.attention\.([qkvo])_proj\.weight"
    assert {"".join(re.findall(of_block, " ".join(keys))) for keys in found} == {"kq", "ov"}
    assert len(found) == len(layers)


@pytest.mark.parametrize("name", ["bert", "gpt2 for classes", "llama", "vit"])
def test_what_is_advised_where_a_scale_is_0_or_permutations_are_asked_for_works(tmp_path: Path, name: str) -> None:
    model, inputs = build(tmp_path, name), inputs_of(name)
    reason = r"has no units .* \(no rule for its 'vit'\)" if name == "vit" else r"cannot be traced by torch\.fx"
    with pytest.raises(ValueError, match=rf"^model = \w+ {reason}[^;]*; match .* = 'head-rotations', 'rota"):
        spec_of(model, "permutations", inputs)
    spec, params, generator = spec_of(model, "rotations", inputs), state_of(model), np.random.default_rng(0)
    for norm in spec.norms:
        scale = params[norm.weight].clone()
        scale[3] = 0
        params |= {norm.weight: scale}
        with pytest.raises(ValueError, match=r"is 0.* match by head-rotations"):
            absorb_norms(params, spec.norms)
    states = [
        params,
        permute(params, heads := spec_of(model, "head-rotations", inputs), random_permutation(heads, generator)),
    ]
    first, second = match_models(model, states, "head-rotations", inputs, rng=generator).states
    assert furthest(first, second) < 1e-5 < furthest(*states)


def frozen(model: nn.Module, *patterns: str) -> nn.Module:
    found = [value for key, value in model.named_parameters() if any(pattern in key for pattern in patterns)]
    assert found
    for value in found:
        value.requires_grad_(False)
    return model


def masked(model: nn.Module) -> nn.Module:
    asymmetrise_(model, Asymmetry(fixed={"model.layers.*.mlp.*": 2}), 0, TOKENS)
    return model


def normed(model: nn.Module) -> nn.Module:
    nn.utils.parametrizations.weight_norm(model.model.layers[0].self_attn.v_proj)  # type: ignore[union-attr, index, arg-type]
    return model


LAYERS = {"gpt2": "transformer.h", "bert": "bert.encoder.layer", "llama": "model.layers"}
# The configuration, what is done to its model, and the orders that can be permuted no longer; "0:" is the first block.
CHANGES: dict[str, tuple[str, Callable[[nn.Module], nn.Module], set[str]]] = {
    "bert with weights of no table": ("bert for words", lambda m: m, {"stream", "pooler"}),
    "bert with frozen embeddings": ("bert", lambda m: frozen(m, "_embeddings"), {"stream"}),
    "gpt2 with frozen embeddings": ("gpt2", lambda m: frozen(m, "wte", "wpe"), {"stream"}),
    "gpt2 with a frozen mlp": ("gpt2 for classes", lambda m: frozen(m, "h.0.mlp.c_fc"), {"stream", "0:mlp"}),
    "gpt2 with frozen attention": ("gpt2", lambda m: frozen(m, "h.0.attn.c_attn"), {"stream", "0:qk", "0:vo"}),
    "gpt2 with a frozen norm": ("gpt2 for classes", lambda m: frozen(m, "ln_f"), {"stream"}),
    "llama with frozen keys": (
        "llama",
        lambda m: frozen(m, "0.self_attn.k_proj"),
        {"stream", *(f"0:{c}" for c in "qkvo")},
    ),
    "asymmetric llama": ("llama", masked, {"stream", "0:mlp", "1:mlp"}),
    "llama with weight norm": ("grouped llama", normed, {"stream", *(f"0:{c}" for c in "qkvo")}),
}


@pytest.mark.parametrize("name", CHANGES)
def test_units_of_frozen_unknown_and_computed_weights_stay(tmp_path: Path, name: str) -> None:
    source, change, fixed = CHANGES[name]
    every = rotation_spec(build(tmp_path / "whole", "bert" if "bert" in source else source), TOKENS).sizes
    model = change(build(tmp_path / "changed", source))
    spec = rotation_spec(model, TOKENS)
    prefix = next(path for kind, path in LAYERS.items() if kind in source)
    assert every.keys() - spec.sizes.keys() == {f"{prefix}.{each}" if ":" in each else each for each in fixed}
    assert {s.order for own in spec.axes.values() for axis in own for s in axis if s.order} == spec.sizes.keys()
    model = in_float64(model)
    params = absorb_norms(drawn(model, 0), spec.norms)
    with torch.no_grad():
        expected = functional_call(model, params, (TOKENS,))
        for seed in range(3):
            turned = permute(params, spec, random_permutation(spec, np.random.default_rng(seed)))
            assert difference(expected, functional_call(model, turned, (TOKENS,))) < 1e-10
            assert furthest(params, turned) > 0.5
