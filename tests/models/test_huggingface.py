"""Transformers of Hugging Face as functions of tokens or images, from tiny configurations and without a network."""

import copy
import json
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fedsim.config.tables import ModelConfig
from fedsim.federation.weights import load_weights_
from fedsim.models.adapter import Adapter
from fedsim.models.adapters import adapt_, adapted_paths, merge_
from fedsim.models.architectures.huggingface import huggingface, positions
from fedsim.models.layers import describe_
from fedsim.training.vectorisable import Vectorisable

pytestmark = pytest.mark.slow
SMALL = {"num_hidden_layers": 1, "hidden_size": 8, "num_attention_heads": 2, "intermediate_size": 12}
WORDS = {"vocab_size": 20, "max_position_embeddings": 12}
CONFIGS: dict[str, tuple[str, str, dict[str, Any]]] = {
    "bert": ("BertConfig", "BertForSequenceClassification", SMALL | WORDS | {"pad_token_id": 0}),
    "gpt2": (
        "GPT2Config",
        "GPT2LMHeadModel",
        {"n_layer": 1, "n_embd": 8, "n_head": 2, "vocab_size": 20, "n_positions": 12},
    ),
    "llama": ("LlamaConfig", "LlamaForCausalLM", SMALL | WORDS | {"num_key_value_heads": 1, "pad_token_id": 0}),
    "distilbert": (
        "DistilBertConfig",
        "DistilBertModel",
        {"n_layers": 1, "dim": 8, "n_heads": 2, "hidden_dim": 12, "pad_token_id": 0} | WORDS,
    ),
    "roberta": ("RobertaConfig", "RobertaModel", SMALL | {"vocab_size": 20, "max_position_embeddings": 14}),
    "vit": ("ViTConfig", "ViTForImageClassification", SMALL | {"image_size": 8, "patch_size": 4, "num_channels": 1}),
}
TEXTS = torch.tensor([[3, 4, 5, 6, 7, 8], [9, 2, 1, 0, 0, 0], [5, 0, 0, 0, 0, 0]])


@pytest.fixture(scope="session")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Save a tiny model of the library's, of random weights."""
    transformers = pytest.importorskip("transformers")

    @cache
    def save(kind: str) -> Path:
        config, model, sizes = CONFIGS[kind]
        folder = tmp_path_factory.mktemp(kind)
        torch.manual_seed(1)
        eos = {"eos_token_id": 0} if kind == "gpt2" else {}
        getattr(transformers, model)(getattr(transformers, config)(**sizes, **eos)).save_pretrained(folder)
        return folder

    return save


def build(path: Path, **options: Any) -> nn.Module:
    torch.manual_seed(0)
    images = path.name.startswith("vit")
    shape, vocabulary = ((1, 8, 8), 0) if images else ((6,), 20)
    classes = 20 if options.get("task") == "next-token" else 3
    return huggingface(shape, classes, path=str(path), vocabulary=vocabulary, **options).eval()


def original(model: nn.Module) -> Callable[..., Any]:
    """Return the library's own forward pass of the same weights."""
    other = copy.deepcopy(model)
    other.__class__ = type(model).__mro__[2]
    return other


@pytest.mark.parametrize(
    ("kind", "task"), [("bert", "classify"), ("gpt2", "regress"), ("gpt2", "next-token"), ("llama", "next-token")]
)
def test_outputs_are_the_library_s_with_its_own_mask_and_do_not_depend_on_padding(
    saved: Callable[[str], Path], kind: str, task: str
) -> None:
    model = build(saved(kind), task=task)
    found = model(TEXTS)
    expected = original(model)(input_ids=TEXTS, attention_mask=(TEXTS != 0).long()).logits
    real = TEXTS != 0
    if task == "next-token":
        assert found.shape == (3, 20, 6)
        torch.testing.assert_close(found.transpose(1, 2)[real], expected[real])
    else:
        torch.testing.assert_close(found, expected)
        torch.testing.assert_close(model(TEXTS[2:]), found[2:])
        torch.testing.assert_close(model(nn.functional.pad(TEXTS, (0, 3))), found)


def test_images_are_classified(saved: Callable[[str], Path]) -> None:
    model = build(saved("vit"))
    images = torch.randn(2, 1, 8, 8, generator=torch.manual_seed(0))
    torch.testing.assert_close(model(images), original(model)(pixel_values=images).logits)


@pytest.mark.parametrize("kind", ["bert", "gpt2", "llama"])
def test_models_train_as_a_cohort_as_they_do_alone(saved: Callable[[str], Path], kind: str) -> None:
    model = build(saved(kind))
    members = [{key: value + shift for key, value in model.named_parameters()} for shift in (0, 0.1)]
    stacked = {key: torch.stack([member[key] for member in members]) for key in members[0]}

    def outputs(params: dict[str, Tensor], tokens: Tensor) -> Tensor:
        return torch.func.functional_call(model, params, (tokens,))

    both = torch.stack([TEXTS, TEXTS.flip(0)])
    with Vectorisable(), torch.no_grad():
        found = torch.vmap(outputs)(stacked, both)
    for member, tokens, each in zip(members, both, found, strict=True):
        torch.testing.assert_close(each, outputs(member, tokens), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("kind", "targets", "first"),
    [
        ("bert", "*query", "bert.encoder.layer.0.attention.self.query"),
        ("gpt2", "*c_attn", "transformer.h.0.attn.c_attn"),
    ],
)
def test_adapters_merge_into_the_library_s_keys_also_where_weights_are_transposed(
    saved: Callable[[str], Path], kind: str, targets: str, first: str
) -> None:
    model = build(saved(kind)).double()
    keys = list(model.state_dict())
    adapt_(model, Adapter(rank=2, alpha=3.0, targets=targets), TEXTS)
    layers = describe_(model, TEXTS)
    assert layers.names == (f"{first}.lora_A.default", f"{first}.lora_B.default", *layers.head)
    for key, value in model.named_parameters():
        if "lora_" in key:
            nn.init.normal_(value, generator=torch.manual_seed(0))
    found = model(TEXTS)
    merge_(model)
    assert list(model.state_dict()) == keys
    torch.testing.assert_close(model(TEXTS), found, rtol=1e-10, atol=1e-10)


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")  # of peft
@pytest.mark.parametrize(
    ("kind", "targets", "drawn", "head"),
    [
        ("distilbert", "*.q_lin", "pre_classifier", "classifier"),
        ("roberta", "*.query", "classifier.dense", "classifier.out_proj"),
    ],
)
def test_next_to_adapters_train_whole_what_peft_trains_of_a_new_classifier(
    saved: Callable[[str], Path], kind: str, targets: str, drawn: str, head: str
) -> None:
    peft = pytest.importorskip("peft")
    model, plain, other = (build(saved(kind)) for _ in range(3))
    adapt_(model, Adapter(rank=2, targets=f"{targets} | {drawn}"), TEXTS)
    config = peft.LoraConfig(task_type="SEQ_CLS", r=2, target_modules=[targets[2:]])
    theirs = peft.get_peft_model(original(plain), config).base_model.model
    trained = {
        key.replace("modules_to_save.default.", "") for key, value in theirs.named_parameters() if value.requires_grad
    }
    assert {key for key, value in model.named_parameters() if value.requires_grad} == trained
    layers = describe_(model, TEXTS)
    assert layers.group("body - *lora_*").layers == (drawn,)
    assert describe_(copy.deepcopy(other), TEXTS, head=f"{drawn} | {head}").group("head").layers == (drawn, head)
    adapt_(other, Adapter(rank=2, targets=targets, head=False), TEXTS)
    assert all("lora_" in key for key, value in other.named_parameters() if value.requires_grad)
    with pytest.raises(ValueError, match=f"names only {drawn}, which train whole"):
        adapt_(build(saved(kind)), Adapter(rank=2, targets=drawn), TEXTS)


@pytest.mark.parametrize(("skip", "has_adapter"), [("classifier", True), ("pre_classifier | classifier", False)])
def test_a_layer_that_another_file_has_weights_for_gets_an_adapter(
    saved: Callable[[str], Path], tmp_path: Path, skip: str, has_adapter: bool
) -> None:
    model = build(saved("distilbert"))
    torch.save(model.state_dict(), tmp_path / "weights.pt")
    place = {"name": "huggingface", "path": str(saved("distilbert"))}
    load_weights_(model, ModelConfig(**place, weights=str(tmp_path / "weights.pt"), weights_skip=skip))
    adapt_(model, Adapter(rank=2, targets="body"), TEXTS)
    assert ("pre_classifier" in adapted_paths(model)) == has_adapter
    assert model.get_parameter("classifier.weight").requires_grad


def test_what_has_no_weights_in_the_file_follows_from_the_seed(saved: Callable[[str], Path]) -> None:
    one, other = (build(saved("gpt2")).state_dict() for _ in range(2))
    assert all(torch.equal(one[key], other[key]) for key in one)
    torch.manual_seed(5)
    assert not torch.equal(
        huggingface((6,), 3, path=str(saved("gpt2")), vocabulary=20).state_dict()["score.weight"], one["score.weight"]
    )


@pytest.mark.parametrize(
    ("vocabulary", "length", "message"),
    [
        (21, 6, "knows 20 tokens, and the data have 21"),
        (20, 13, "takes 12 tokens, and texts have 13; set .* length = 12"),
    ],
)
def test_data_that_do_not_fit_the_model_are_refused(
    saved: Callable[[str], Path], vocabulary: int, length: int, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        huggingface((length,), 3, path=str(saved("bert")), vocabulary=vocabulary)


def test_a_place_without_a_model_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_network(*_: Any) -> None:
        raise OSError

    monkeypatch.setattr("socket.getaddrinfo", no_network)
    for name in ("HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "bert"} | SMALL | WORDS))
    (tmp_path / "pytorch_model.bin").write_bytes(b"")
    for path, message in {
        "org/none": "no folder here, and as an id of the hub it needs a network once",
        "./none": "path = './none' does not exist",
        str(tmp_path): "holds no model.safetensors, only pytorch_model.bin, which may hold code",
        str(tmp_path / "config.json"): "is a file; give the folder",
    }.items():
        with pytest.raises(ValueError, match=message):
            huggingface((6,), 3, path=path, vocabulary=20)


def test_positions_of_robertas_family_begin_after_that_of_the_padding() -> None:
    transformers = pytest.importorskip("transformers")
    assert positions(transformers.RobertaConfig(max_position_embeddings=514, pad_token_id=1)) == 512
    assert positions(transformers.BertConfig(max_position_embeddings=512, pad_token_id=0)) == 512
