import copy
import inspect
import re
import subprocess
import sys
from functools import cache
from typing import Any, NamedTuple, get_args

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.functional import cross_entropy
from torchvision.models.vgg import cfgs

from fedsim.models.architectures import MODELS
from fedsim.models.architectures.gpt import CausalSelfAttention
from fedsim.models.architectures.norm import NORMS, FrozenBatchNorm2d, Norm
from fedsim.models.layers import Layers

CLASSES = 7
IMAGE, TOKENS = (1, 28, 28), (9,)


class Sample(NamedTuple):
    """A small model of each name: what it is built with, and what its modules are called."""

    shape: tuple[int, ...]
    options: dict[str, Any]
    classifier: str
    groups: list[str]


ZOO = {
    "mlp": Sample(IMAGE, {"hidden": (5, 4)}, "fc3", ["fc1", "fc2", "fc3"]),
    "lenet5": Sample(IMAGE, {}, "fc3", ["conv*", "fc*"]),
    "cnn": Sample(IMAGE, {}, "fc2", ["conv*", "fc*"]),
    "vgg11": Sample(IMAGE, {"hidden": (6,)}, "classifier.2", ["features.*", "classifier.*"]),
    "vgg16": Sample(IMAGE, {}, "classifier.0", ["features.*", "classifier.*"]),
    "resnet18": Sample(IMAGE, {"width": 4}, "fc", ["conv1", *(f"layer{i}.*" for i in (1, 2, 3, 4)), "fc"]),
    "resnet20": Sample(IMAGE, {}, "fc", ["conv1", "layer1.*", "layer2.*", "layer3.*", "fc"]),
    "mobilenet": Sample(
        IMAGE,
        {"width": 0.25, "dropout": 0.0},
        "classifier.1",
        [*(f"features.{i}.*" for i in range(19)), "classifier.*"],
    ),
    "vit": Sample(
        IMAGE,
        {"depth": 2, "heads": 2, "width": 8, "mlp": 6},
        "heads.head",
        ["class_token", "conv_proj", "encoder.layers.encoder_layer_0.*", "encoder.layers.encoder_layer_1.*", "heads.*"],
    ),
    "char-lstm": Sample(TOKENS, {"hidden": 6}, "fc", ["embedding", "lstm.0", "lstm.1", "fc"]),
    "gpt": Sample(TOKENS, {"depth": 2, "heads": 2, "width": 8}, "lm_head", ["wte", "wpe", "h.0.*", "h.1.*", "ln_f"]),
    "text-cnn": Sample(TOKENS, {"embedding": 6, "filters": 5, "dropout": 0.0}, "fc", ["embedding", "conv.*", "fc"]),
    "torchvision": Sample(
        IMAGE, {"architecture": "shufflenet_v2_x0_5"}, "fc", ["conv1.*", "stage2.*", "stage3.*", "stage4.*", "fc"]
    ),
}
# The images of the samples, made as small as the models take them.
SMALL = {"lenet5": (1, 12, 12), "cnn": (1, 8, 8), "vit": (1, 8, 8)} | dict.fromkeys(
    ("vgg11", "vgg16", "resnet18", "resnet20", "mobilenet"), (1, 4, 4)
)
FROM_FILES = "huggingface"  # whose tests make a folder first
WITH_NORM = [name for name, model in MODELS.items() if "norm" in inspect.signature(model).parameters]
CASES = [(name, norm) for name in ZOO for norm in (get_args(Norm) if name in WITH_NORM else [None])]
every_model = pytest.mark.parametrize(("name", "norm"), CASES)


def narrow(name: str, shape: tuple[int, ...], norm: str | None = None) -> nn.Module:
    """Build the sample of a name for inputs of a shape."""
    torch.manual_seed(0)
    with pytest.MonkeyPatch.context() as patch:
        # VGG has no option for its width, and has millions of weights: an eighth of it, except for the last channels.
        for configuration, layers in cfgs.items():
            eighths = [each if each == "M" else int(each) // 8 for each in layers]
            last = max(i for i, each in enumerate(layers) if each != "M")
            patch.setitem(cfgs, configuration, [*eighths[:last], layers[last], *eighths[last + 1 :]])
        return MODELS[name](shape, CLASSES, **ZOO[name].options, **({"norm": norm} if norm else {}))


@cache
def build(name: str, norm: str | None = None) -> nn.Module:
    """Build the sample of a name once for all tests; none of them changes it."""
    return narrow(name, ZOO[name].shape, norm).eval()


def batch(shape: tuple[int, ...], n: int = 2) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    if len(shape) == 1:
        return torch.randint(CLASSES, (n, *shape), generator=generator)
    return torch.randn(n, *shape, generator=generator)


def number_of_parameters(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def shapes(model: nn.Module) -> dict[str, torch.Size]:
    return {key: value.shape for key, value in model.state_dict().items()}


def test_every_model_has_a_sample() -> None:
    assert ZOO.keys() | {FROM_FILES} == MODELS.keys()


@pytest.mark.slow
@every_model
def test_every_tensor_is_in_exactly_one_layer_and_tied_ones_are_aliases(name: str, norm: str | None) -> None:
    model = build(name, norm)
    layers = Layers.of(model)
    entries = {key: value for key, value in model.state_dict(keep_vars=True).items() if value.is_floating_point()}
    keys = [key for layer in layers for key in layer.keys]
    assert len(keys) == len(set(keys)) == len({id(value) for value in entries.values()})
    assert sorted([*keys, *layers.aliases]) == sorted(entries)
    for alias, key in layers.aliases.items():
        assert entries[alias] is entries[key]
        assert layers.of_key(alias) == layers.of_key(key)
    assert sorted(key for layer in layers for key in layer.parameters) == sorted(dict(model.named_parameters()))
    assert sum(layer.size for layer in layers) == sum(entries[key].nbytes for key in keys)


@pytest.mark.slow
@every_model
def test_the_head_is_the_classifier_and_nothing_else(name: str, norm: str | None) -> None:
    model, layers = build(name, norm), Layers.of(build(name, norm))
    classifier = model.get_submodule(ZOO[name].classifier)
    seen: list[Tensor] = []
    handle = classifier.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].clone()))
    head = {key: model.get_parameter(key) for key in layers.keys(layers.group("head"), buffers=False)}
    with torch.no_grad():
        generator = torch.Generator().manual_seed(2)
        changed = {key: value + torch.randn(value.shape, generator=generator) for key, value in head.items()}
        logits = [functional_call(model, part, batch(ZOO[name].shape)) for part in ({}, changed)]
    handle.remove()
    assert {id(value) for value in head.values()} == {id(value) for value in classifier.parameters()}
    assert classifier.weight.shape[0] == CLASSES
    assert not torch.allclose(*logits)
    # With tied embeddings the head is also the input's, so the classifier's input moves with it.
    assert torch.equal(*seen) == (name != "gpt")


@pytest.mark.slow
@every_model
def test_body_and_head_are_all_layers(name: str, norm: str | None) -> None:
    layers = Layers.of(build(name, norm))
    body, head = layers.group("body"), layers.group("head")
    assert len(head) == 1
    assert not set(body) & set(head)
    assert layers.group("head | body").layers == layers.names


@pytest.mark.slow
@every_model
def test_norm_is_exactly_the_normalisations(name: str, norm: str | None) -> None:
    model = build(name, norm)
    layers = Layers.of(model)
    expected = [path for path, module in model.named_modules() if re.search(r"Norm(2d)?$", type(module).__name__)]
    if expected:
        assert sorted(layers.group("norm")) == sorted(expected)
    else:
        assert norm == "none" or name in ("mlp", "lenet5", "cnn", "char-lstm", "text-cnn")
        with pytest.raises(ValueError, match="'norm' matches nothing"):
            layers.group("norm")


@every_model
def test_globs_of_stages_match_and_are_disjoint(name: str, norm: str | None) -> None:
    layers = Layers.of(build(name, norm))
    matched = [layer for pattern in ZOO[name].groups for layer in layers.group(pattern)]
    assert len(matched) == len(set(matched))


@pytest.mark.slow
@every_model
def test_a_step_in_training_mode_gives_every_parameter_a_finite_gradient(name: str, norm: str | None) -> None:
    model = copy.deepcopy(build(name, norm)).train()
    logits = model(batch(ZOO[name].shape))
    cross_entropy(logits, torch.ones(logits[:, 0].shape, dtype=torch.int64)).backward()
    for key, parameter in model.named_parameters():
        assert parameter.grad is not None, key
        assert parameter.grad.isfinite().all(), key


IMAGE_MODELS = [name for name, sample in ZOO.items() if sample.shape == IMAGE]
TOKEN_MODELS = [name for name in ZOO if name not in IMAGE_MODELS]
NEXT_TOKEN_MODELS = [name for name in TOKEN_MODELS if name != "text-cnn"]


@pytest.mark.slow
@pytest.mark.parametrize("name", IMAGE_MODELS)
@pytest.mark.parametrize("shape", [(1, 28, 28), (3, 32, 32)])
def test_every_image_model_maps_images_to_logits(name: str, shape: tuple[int, ...]) -> None:
    model = MODELS[name](shape, CLASSES, **ZOO[name].options).eval()
    assert model(torch.zeros(2, *shape)).shape == (2, CLASSES)


@pytest.mark.parametrize("name", ["mlp", "cnn", "vgg11", "vgg16", "resnet18", "resnet20", "mobilenet", "vit"])
def test_the_digits_are_not_too_small(name: str) -> None:
    model = MODELS[name]((1, 8, 8), CLASSES, **ZOO[name].options).eval()
    assert model(torch.zeros(2, 1, 8, 8)).shape == (2, CLASSES)


def test_the_mlp_takes_vectors() -> None:
    assert MODELS["mlp"]((5,), CLASSES)(torch.zeros(2, 5)).shape == (2, CLASSES)


@pytest.mark.parametrize("name", NEXT_TOKEN_MODELS)
def test_token_models_predict_after_each_token_or_after_the_last(name: str) -> None:
    tokens, logits = batch(TOKENS), {}
    for predict in ("each", "last"):
        torch.manual_seed(0)
        logits[predict] = MODELS[name](TOKENS, CLASSES, predict=predict, **ZOO[name].options)(tokens)
    assert logits["each"].shape == (2, CLASSES, 9)
    torch.testing.assert_close(logits["each"][:, :, -1], logits["last"])


@pytest.mark.parametrize("name", NEXT_TOKEN_MODELS)
def test_a_later_token_does_not_change_earlier_predictions(name: str) -> None:
    tokens = batch(TOKENS)
    changed = tokens.clone()
    changed[:, 5] = (tokens[:, 5] + 1) % CLASSES
    before, after = build(name)(tokens), build(name)(changed)
    torch.testing.assert_close(before[:, :, :5], after[:, :, :5])
    assert all(not torch.allclose(before[:, :, i], after[:, :, i], rtol=0, atol=1e-6) for i in range(5, 9))


@pytest.mark.parametrize("name", NEXT_TOKEN_MODELS)
def test_token_models_take_shorter_sequences(name: str) -> None:
    tokens = batch(TOKENS)
    torch.testing.assert_close(build(name)(tokens[:, :4]), build(name)(tokens)[:, :, :4])


def test_causal_attention_is_torchs_multi_head_attention_with_a_mask() -> None:
    torch.manual_seed(0)
    ours = CausalSelfAttention(heads=2, width=8, dropout=0.0)
    theirs = nn.MultiheadAttention(8, 2, batch_first=True)
    names = {"c_attn.": "in_proj_", "c_proj.": "out_proj."}
    theirs.load_state_dict(
        {next(key.replace(a, b) for a, b in names.items() if a in key): v for key, v in ours.state_dict().items()}
    )
    x = torch.randn(3, 5, 8)
    mask = nn.Transformer.generate_square_subsequent_mask(5)
    torch.testing.assert_close(ours(x), theirs(x, x, x, attn_mask=mask, is_causal=True)[0])


@pytest.mark.parametrize(
    ("name", "shape", "classes", "options", "expected"),
    [
        # McMahan et al. 2017, section 3.
        ("mlp", (1, 28, 28), 10, {}, 199_210),
        ("cnn", (1, 28, 28), 10, {}, 1_663_370),
        # 6 (25 + 1) + 16 (6 * 25 + 1) + 120 (400 + 1) + 84 (120 + 1) + 10 (84 + 1), with 16 maps of 5x5 in both sizes.
        ("lenet5", (1, 28, 28), 10, {}, 61_706),
        ("lenet5", (1, 32, 32), 10, {}, 61_706),
        # torchvision's VGG16 has 14,714,688 in its convolutions; the classifier has 512 * 10 + 10.
        ("vgg16", (3, 32, 32), 10, {}, 14_714_688 + 5_130),
        # He et al. 2016, table 6, says 0.27 M; that is 269,722, and option B adds (16 + 2) 32 + (32 + 2) 64.
        ("resnet20", (3, 32, 32), 10, {"norm": "batch"}, 269_722 + 2_752),
        # torchvision.models.MobileNet_V2_Weights and ViT_B_16_Weights, meta["num_params"].
        ("mobilenet", (3, 32, 32), 1000, {"norm": "batch"}, 3_504_872),
        (
            "vit",
            (3, 224, 224),
            1000,
            {"patch": 16, "depth": 12, "heads": 12, "width": 768, "mlp": 3072},
            86_567_656,
        ),
        # GPT-2 small: (50257 + 1024) 768 + 12 (12 * 768^2 + 13 * 768) + 2 * 768, known as 124 M.
        ("gpt", (1024,), 50_257, {"depth": 12, "heads": 12, "width": 768}, 124_439_808),
        # McMahan et al. 2017 say 866,578: with 258 tokens, one bias of 4 * 256 in each of the two layers where torch
        # has two, and peepholes, 3 * 256 in each layer.
        ("char-lstm", (80,), 258, {}, 866_578 + 2 * 4 * 256 - 2 * 3 * 256),
    ],
)
def test_numbers_of_parameters_are_the_papers(
    name: str, shape: tuple[int, ...], classes: int, options: dict, expected: int
) -> None:
    with torch.device("meta"):
        assert number_of_parameters(MODELS[name](shape, classes, **options)) == expected


def test_resnet18_without_normalisation_has_21_layers() -> None:
    # A convolution, 8 blocks of two, 3 projections and the classifier, as in Adilova et al. 2024.
    assert len(Layers.of(build("resnet18", "none"))) == 21


def test_full_width_models_have_torchvisions_names_and_shapes_but_where_small_images_need_others() -> None:
    from torchvision import models

    with torch.device("meta"):
        vgg = MODELS["vgg16"]((3, 32, 32), 1000, norm="batch")
        pairs = {
            "resnet18": (MODELS["resnet18"]((3, 32, 32), 1000, norm="batch"), models.resnet18()),
            "mobilenet": (MODELS["mobilenet"]((3, 32, 32), 1000, norm="batch"), models.mobilenet_v2()),
            "vgg11": (MODELS["vgg11"]((3, 32, 32), 10).features, models.vgg11().features),
            "vgg16": (vgg.features, models.vgg16_bn().features),
            "vit": (
                MODELS["vit"]((3, 224, 224), 1000, patch=16, depth=12, heads=12, width=768, mlp=3072),
                models.vit_b_16(),
            ),
            "torchvision": (MODELS["torchvision"]((3, 32, 32), 1000, architecture="resnet50"), models.resnet50()),
        }
    different = {"resnet18": {"conv1.weight": (64, 3, 3, 3)}}
    for name, (ours, theirs) in pairs.items():
        assert shapes(ours) == shapes(theirs) | different.get(name, {}), name


@pytest.mark.parametrize(("side", "poolings", "places"), [(32, 5, 5), (28, 4, 5), (8, 3, 5), (64, 5, 5)])
def test_vgg_leaves_out_poolings_that_would_leave_no_pixel(side: int, poolings: int, places: int) -> None:
    features = MODELS["vgg11"]((1, side, side), CLASSES).features
    assert sum(isinstance(module, nn.MaxPool2d) for module in features) == poolings
    assert sum(isinstance(module, nn.MaxPool2d | nn.Identity) for module in features) == places
    assert features(torch.zeros(1, 1, side, side)).shape[2:] == (max(side // 32, 1),) * 2


@pytest.mark.parametrize(
    ("name", "last", "side"), [("resnet18", "layer4", 4), ("resnet20", "layer3", 8), ("mobilenet", "features", 4)]
)
def test_small_images_are_not_shrunk_to_a_pixel(name: str, last: str, side: int) -> None:
    # 32x32 halved twice (He et al. 2016, section 4.2: 8x8 at the end) or three times.
    model, seen = MODELS[name]((1, 32, 32), CLASSES, **ZOO[name].options).eval(), []
    model.get_submodule(last).register_forward_hook(lambda *passed: seen.append(passed[2].shape[2:]))
    model(torch.zeros(1, 1, 32, 32))
    assert seen == [(side, side)]


def test_an_untied_gpt_has_a_head_of_its_own_and_begins_as_a_tied_one_otherwise() -> None:
    models = []
    for tied in (True, False):
        torch.manual_seed(0)
        models.append(MODELS["gpt"]((8,), 20, depth=1, heads=2, width=16, tied=tied))
    tied, own = (model.state_dict() for model in models)
    assert models[1].lm_head.weight is not models[1].wte.weight
    assert {key for key in tied if not torch.equal(tied[key], own[key])} == {"lm_head.weight"}
    assert float(own["lm_head.weight"].std()) == pytest.approx(0.02, rel=0.1)
    assert len(Layers.of(models[1])) == len(Layers.of(models[0])) + 1


def test_gpt_starts_as_gpt_2_does() -> None:
    torch.manual_seed(0)
    model = MODELS["gpt"]((64,), 100, depth=8, heads=2, width=64)
    assert model.lm_head.weight is model.wte.weight
    for name, parameter in model.named_parameters():
        parameter = parameter.detach()
        if parameter.dim() == 2:
            expected = 0.02 / 16**0.5 if "c_proj" in name else 0.02
            assert float(parameter.std()) == pytest.approx(expected, rel=0.05), name
        else:
            assert float(parameter.abs().sum()) == (parameter.numel() if name.endswith("weight") else 0), name


@pytest.mark.parametrize("norm", get_args(Norm))
def test_each_kind_of_normalisation_normalises_over_what_it_says(norm: Norm) -> None:
    x = torch.randn(5, 4, 3, 3, generator=torch.Generator().manual_seed(0)) * 3 + 1
    over = {"batch": (x, (0, 2, 3)), "group": (x.view(5, 2, 2, 3, 3), (2, 3, 4)), "layer": (x, (1, 2, 3))}
    expected = x
    if norm in over:
        grouped, dims = over[norm]
        variance, mean = torch.var_mean(grouped, dims, correction=0, keepdim=True)
        expected = ((grouped - mean) / (variance + 1e-5).sqrt()).view(x.shape)
    torch.testing.assert_close(NORMS[norm](4)(x), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", WITH_NORM)
def test_statistics_of_batches_move_in_training_and_frozen_ones_do_not(name: str) -> None:
    for norm, moves in (("batch", True), ("frozen-batch", False)):
        model = copy.deepcopy(build(name, norm))
        before = {key: value.clone() for key, value in model.named_buffers()}
        model.train()(batch(IMAGE, 4) + 1)
        assert before.keys() == {key for key, _ in model.named_buffers()} != set()
        assert all(torch.equal(before[key], value) != moves for key, value in model.named_buffers())


def test_frozen_batch_normalisation_keeps_a_checkpoints_statistics_and_trains_scale_and_shift() -> None:
    batch_norm, frozen = nn.BatchNorm2d(3), FrozenBatchNorm2d(3)
    batch_norm(batch((3, 4, 4), 6) * 2 + 1)
    frozen.load_state_dict(batch_norm.state_dict())
    frozen.reset_running_stats()
    x = batch((3, 5, 5))
    torch.testing.assert_close(frozen.train()(x), batch_norm.eval()(x))
    assert [name for name, _ in frozen.named_parameters()] == ["weight", "bias"]
    assert not FrozenBatchNorm2d(3).training


ONE_PER_FAMILY = [
    "alexnet",
    "convnext_tiny",
    "densenet121",
    "efficientnet_b0",
    "efficientnet_v2_s",
    "googlenet",
    "inception_v3",
    "maxvit_t",
    "mnasnet0_5",
    "mobilenet_v3_small",
    "resnext50_32x4d",
    "shufflenet_v2_x0_5",
    "swin_t",
    "swin_v2_t",
    "vgg11_bn",
    "vit_b_16",
]


@pytest.mark.slow
@pytest.mark.parametrize("architecture", ONE_PER_FAMILY)
def test_torchvisions_architectures_take_any_number_of_channels(architecture: str) -> None:
    with torch.device("meta"):
        model = MODELS["torchvision"]((2, 224, 224), CLASSES, architecture=architecture)
        first = next(module for module in model.modules() if isinstance(module, nn.Conv2d))
        logits = model.eval()(torch.zeros(1, 2, 224, 224))
    assert first.in_channels == 2
    assert logits.shape == (1, CLASSES)
    (head,) = Layers.of(model).group("head")
    assert model.get_submodule(head).out_features == CLASSES


def test_a_replaced_first_convolution_has_the_same_settings() -> None:
    three, one = (
        MODELS["torchvision"]((channels, 32, 32), CLASSES, architecture="resnet18").conv1 for channels in (3, 1)
    )
    assert repr(one) == repr(three).replace("Conv2d(3", "Conv2d(1")


@pytest.mark.slow
def test_a_vision_transformer_of_torchvision_has_the_images_size() -> None:
    model = MODELS["torchvision"]((3, 32, 32), CLASSES, architecture="vit_b_32")
    assert model.eval()(torch.zeros(1, 3, 32, 32)).shape == (1, CLASSES)


@pytest.mark.slow
def test_the_table_of_models_does_not_import_torchvision() -> None:
    code = "import sys, fedsim.models.architectures; sys.exit('torchvision' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize("name", [name for name in ZOO if name != "mlp"])
def test_a_wrong_kind_of_input_is_named_with_the_rule_and_the_remedy(name: str) -> None:
    wrong, rule = ((3, 32, 32), "token sequences") if name in TOKEN_MODELS else ((80,), "images")
    with pytest.raises(ValueError, match=re.escape(f"shape = {wrong}: {name} takes {rule}")) as caught:
        MODELS[name](wrong, CLASSES, **ZOO[name].options)
    assert re.search(r"; choose \w", str(caught.value))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "shape", "options", "message"),
    [
        ("mlp", (1, 8, 8), {"hidden": (4, 0)}, "hidden = [4, 0]: each width must be at least 1"),
        ("cnn", (1, 3, 8), {}, "3x8 is too small for cnn, which needs at least 4x4"),
        ("lenet5", (1, 11, 12), {}, "11x12 is too small for lenet5, which needs at least 12x12"),
        ("vgg11", (1, 8, 8), {"hidden": (0,)}, "hidden = [0]: each width must be at least 1"),
        ("resnet18", (1, 8, 8), {"width": 0}, "width = 0 must be at least 1"),
        ("resnet18", (1, 8, 8), {"width": 3}, "even"),
        ("resnet20", (1, 8, 8), {"width": 0}, "width = 0 must be at least 1"),
        ("mobilenet", (1, 8, 8), {"width": 0.0}, "width = 0.0 must be more than 0"),
        ("mobilenet", (1, 8, 8), {"dropout": 1.0}, "dropout = 1.0 must be at least 0 and below 1"),
        ("vit", (1, 8, 12), {}, "square"),
        ("vit", (1, 28, 28), {"patch": 8}, "patch = 8 must divide the images' side of 28; take one of 1, 2, 4, 7, 14"),
        ("vit", (1, 8, 8), {"depth": 0}, "depth = 0 must be at least 1"),
        ("vit", (1, 8, 8), {"heads": 3, "width": 8}, "width = 8 must be a multiple of heads = 3; take 9"),
        ("char-lstm", (8,), {"hidden": 0}, "hidden = 0 must be at least 1"),
        ("char-lstm", (0,), {}, "a length of at least 1"),
        ("gpt", (8,), {"heads": 5, "width": 8}, "width = 8 must be a multiple of heads = 5; take 10"),
        ("gpt", (8,), {"dropout": -0.1}, "dropout = -0.1 must be"),
        ("torchvision", (3, 32, 32), {"architecture": "resnet51"}, "'resnet51' is unknown; choose resnet50"),
        ("torchvision", (3, 32, 32), {"architecture": "zzz"}, "'zzz' is unknown; choose alexnet or"),
        ("torchvision", (3, 32, 32), {"architecture": "fasterrcnn_resnet50_fpn"}, "is unknown"),
        ("torchvision", (3, 28, 28), {"architecture": "vit_b_16"}, "vit_b_16 does not take images of 28x28"),
        ("torchvision", (3, 28, 28), {"architecture": "maxvit_t"}, "maxvit_t does not take images of 28x28"),
    ],
)
def test_values_out_of_range_are_named(name: str, shape: tuple[int, ...], options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)) as caught:
        MODELS[name](shape, 10, **options)
    assert "\n" not in str(caught.value)
