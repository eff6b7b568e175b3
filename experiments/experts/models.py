"""A vision transformer that is trained and frozen, except for one block's feed-forward part: new experts."""

from safetensors.torch import load_file
from torch import nn

from fedsim.models.architectures import MODELS
from fedsim.reading import existing_path

BACKBONE = {"patch": 7, "depth": 2, "heads": 4, "width": 64, "mlp": 128}


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
    """Build a transformer with a trained backbone and a mixture of experts in one block, which alone is trained.

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
    file, own = existing_path(weights), f"encoder.layers.encoder_layer_{block}.mlp."
    if file is None:
        raise FileNotFoundError(
            f"weights = {weights!r} does not exist; python -m experiments.experts.backbone makes it"
        )
    sizes = {"num_experts": num_experts, "top_k": top_k, "num_shared_experts": num_shared_experts}
    model = MODELS["vit"](shape, classes, **BACKBONE, **sizes, expert_width=expert_width, moe_blocks=(block,))
    trained = {key: value for key, value in load_file(file).items() if not key.startswith(own)}
    model.load_state_dict(model.state_dict() | trained)
    for key, parameter in model.named_parameters():
        parameter.requires_grad_(key.startswith(own))
    return model
