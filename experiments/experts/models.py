"""Transformers that are trained and frozen, except for one block's feed-forward part: new experts."""

from typing import Any

from safetensors.torch import load_file
from torch import nn

from fedsim.models.architectures import MODELS
from fedsim.reading import existing_path

VIT = {"patch": 7, "depth": 2, "heads": 4, "width": 64, "mlp": 128}
GPT = {"depth": 2, "heads": 4, "width": 32}


def vit_with_experts(
    shape: tuple[int, ...],
    classes: int,
    *,
    weights: str,
    block: int,
    num_experts: int = 4,
    top_k: int = 0,
    num_shared_experts: int = 0,
    expert_width: int = 32,
) -> nn.Module:
    """Build a vision transformer with a trained backbone and a mixture of experts in one block, which alone is trained.

    Parameters
    ----------
    weights
        File of safetensors with the weights of a trained transformer without experts.
    block
        Number of the block whose feed-forward part the experts replace.

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    """
    sizes = {"num_experts": num_experts, "top_k": top_k, "num_shared_experts": num_shared_experts}
    model = MODELS["vit"](shape, classes, **VIT, **sizes, expert_width=expert_width, moe_blocks=(block,))
    return _on_backbone(model, f"encoder.layers.encoder_layer_{block}.mlp.", weights, "vit")


def gpt_with_experts(
    shape: tuple[int, ...],
    classes: int,
    *,
    vocabulary: int,
    weights: str,
    block: int,
    num_experts: int = 4,
    top_k: int = 0,
    num_shared_experts: int = 0,
    expert_width: int = 32,
) -> nn.Module:
    """Build a GPT on a trained backbone, of which one block's experts alone train, as `vit_with_experts`.

    Raises
    ------
    FileNotFoundError
        If there is no such file of weights.
    """
    sizes: dict[str, Any] = {"num_experts": num_experts, "top_k": top_k, "num_shared_experts": num_shared_experts}
    sizes |= {"vocabulary": vocabulary, "expert_width": expert_width, "moe_blocks": (block,)}
    return _on_backbone(MODELS["gpt"](shape, classes, **GPT, **sizes), f"h.{block}.mlp.", weights, "gpt")


def _on_backbone(model: nn.Module, own: str, weights: str, name: str) -> nn.Module:
    """Give a model the weights of a file, except those whose keys begin with ``own``, which alone are trained."""
    file = existing_path(weights)
    if file is None:
        raise FileNotFoundError(
            f"weights = {weights!r} does not exist; python -m experiments.experts.backbone {name} makes it"
        )
    trained = {key: value for key, value in load_file(file).items() if not key.startswith(own)}
    model.load_state_dict(model.state_dict() | trained)
    for key, parameter in model.named_parameters():
        parameter.requires_grad_(key.startswith(own))
    return model
