"""Transformers of Hugging Face as functions of tokens or images, from tiny configurations and without a network."""

import copy
import json
import shutil
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
    "mistral": (
        "MistralConfig",
        "MistralForCausalLM",
        SMALL | WORDS | {"num_key_value_heads": 1, "pad_token_id": 0, "sliding_window": 2},
    ),
    "mpt": (
        "MptConfig",
        "MptForCausalLM",
        {"d_model": 8, "n_layers": 1, "n_heads": 2, "vocab_size": 20, "max_seq_len": 12, "pad_token_id": 0},
    ),
    "t5": (
        "T5Config",
        "T5ForSequenceClassification",
        {"d_model": 8, "d_kv": 4, "d_ff": 12, "num_layers": 1, "num_heads": 2, "vocab_size": 20, "pad_token_id": 0}
        | {"eos_token_id": 1, "decoder_start_token_id": 0},
    ),
    "vit": ("ViTConfig", "ViTForImageClassification", SMALL | {"image_size": 8, "patch_size": 4, "num_channels": 1}),
}
TEXTS = torch.tensor([[3, 4, 5, 6, 7, 8], [9, 2, 1, 0, 0, 0], [5, 0, 0, 0, 0, 0]])
ENDED = torch.tensor([[3, 4, 5, 6, 7, 1], [9, 2, 1, 0, 0, 0], [1, 0, 0, 0, 0, 0]])  # each with the end of a text


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
        made = getattr(transformers, model)(getattr(transformers, config)(**sizes, **eos))
        for value in made.parameters():
            nn.init.normal_(value, std=0.3)  # so that it matters what attention sees
        made.save_pretrained(folder)
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
    ("kind", "task", "texts"),
    [
        ("bert", "classify", TEXTS),
        ("gpt2", "regress", TEXTS),
        ("gpt2", "next-token", TEXTS),
        ("llama", "next-token", TEXTS),
        ("mistral", "classify", TEXTS),
        ("mistral", "next-token", TEXTS),
        ("mpt", "classify", TEXTS),
        ("mpt", "next-token", TEXTS),
        ("t5", "classify", ENDED),
    ],
)
def test_outputs_are_the_library_s_with_its_own_mask_and_do_not_depend_on_padding(
    saved: Callable[[str], Path], kind: str, task: str, texts: Tensor
) -> None:
    model = build(saved(kind), task=task)
    found = model(texts)
    expected = original(model)(input_ids=texts, attention_mask=(texts != 0).long()).logits
    real = texts != 0
    if task == "next-token":
        assert found.shape == (3, 20, 6)
        torch.testing.assert_close(found.transpose(1, 2)[real], expected[real])
    else:
        torch.testing.assert_close(found, expected)
        torch.testing.assert_close(model(texts[2:]), found[2:])
        torch.testing.assert_close(model(nn.functional.pad(texts, (0, 3))), found)


def test_a_model_that_sees_the_next_token_does_not_predict_it(saved: Callable[[str], Path], tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"path = .* sees the token that it has to predict; .* is_decoder"):
        build(saved("bert"), task="next-token")
    shutil.copytree(saved("bert"), tmp_path, dirs_exist_ok=True)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"is_decoder": True}))
    other = TEXTS[:1].clone()
    other[0, 3:] = 9
    model = build(tmp_path, task="next-token")
    torch.testing.assert_close(model(TEXTS[:1])[:, :, :3], model(other)[:, :, :3])


def test_a_token_that_also_pads_counts_and_learns_where_texts_have_it(
    saved: Callable[[str], Path], tmp_path: Path
) -> None:
    shutil.copytree(saved("llama"), tmp_path, dirs_exist_ok=True)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"pad_token_id": None, "eos_token_id": 2}))
    model = build(tmp_path, task="next-token")
    text = torch.tensor([[2, 3, 4, 2, 5, 6]])
    expected = original(model)(input_ids=text, attention_mask=torch.ones_like(text)).logits
    torch.testing.assert_close(model(text).transpose(1, 2), expected)
    padded = model(nn.functional.pad(text, (0, 2), value=2))
    torch.testing.assert_close(padded[:, :, :6].transpose(1, 2), expected)
    model(text).square().sum().backward()
    assert model.get_input_embeddings().weight.grad[2].abs().max() > 0


@pytest.mark.parametrize(("kind", "drops"), [("bert", True), ("distilbert", True), ("t5", True), ("llama", False)])
def test_every_dropout_of_a_family_is_set(saved: Callable[[str], Path], kind: str, drops: bool) -> None:
    model = build(saved(kind)).train()
    torch.testing.assert_close(model(ENDED), model(ENDED), rtol=0, atol=0)
    if drops:
        model = build(saved(kind), dropout=0.5).train()
        assert not torch.equal(model(ENDED), model(ENDED))
    else:
        with pytest.raises(ValueError, match=r"no dropout but that of attention weights; leave dropout = 0\.5 out"):
            build(saved(kind), dropout=0.5)


def test_a_file_of_another_model_s_weights_is_refused(saved: Callable[[str], Path], tmp_path: Path) -> None:
    safetensors = pytest.importorskip("safetensors.torch")
    shutil.copytree(saved("bert"), tmp_path, dirs_exist_ok=True)
    file = tmp_path / "model.safetensors"
    weights = {f"student.{key}": value for key, value in safetensors.load_file(file).items()}
    safetensors.save_file(weights, file, metadata={"format": "pt"})
    with pytest.raises(
        ValueError, match=r"no weights for \d+ entries .* such as bert.*; its own are called student\.bert"
    ):
        build(tmp_path)


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
    assert positions(transformers.XLNetConfig()) is None  # it has no limit, and says -1


def test_a_model_masks_the_padding_of_the_data_or_is_refused(saved: Callable[[str], Path], tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"masks the token 0 as padding, and the data are padded with 3; .* tokenizer"):
        build(saved("bert"), pad_token=3)
    shutil.copytree(saved("llama"), tmp_path, dirs_exist_ok=True)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"pad_token_id": None, "eos_token_id": 2}))
    model = build(tmp_path, pad_token=3)
    text = torch.tensor([[5, 6, 2, 3, 3, 3]])
    torch.testing.assert_close(model(text), model(text[:, :3]))
    expected = original(model)(input_ids=text, attention_mask=(text != 3).long()).logits
    torch.testing.assert_close(model(text), expected)
