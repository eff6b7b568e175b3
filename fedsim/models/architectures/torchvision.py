"""Any classification model of torchvision, by name."""

import difflib
from typing import Any

from torch import nn

from fedsim.models.architectures.checks import image_shape
from fedsim.models.architectures.convolution import set_input_channels_

# GoogLeNet warns unless init_weights is given; it and Inception return a tuple with auxiliary logits.
SETTINGS: dict[str, dict[str, Any]] = {
    "googlenet": {"aux_logits": False, "init_weights": True},
    "inception_v3": {"aux_logits": False, "init_weights": True},
}


def torchvision(shape: tuple[int, ...], classes: int, *, architecture: str) -> nn.Module:
    """Build any classification model of torchvision, without pretrained weights, with torchvision's layer names.

    Most are made for images of 224x224 and shrink small ones to a single pixel; use the other models for these. If the
    images do not have 3 channels, the first convolution is replaced. SqueezeNet classifies by a convolution, so it has
    no layer group ``head``.

    Parameters
    ----------
    architecture
        Name from `torchvision.models.list_models`, such as ``resnet50`` or ``efficientnet_b0``.

    Raises
    ------
    ValueError
        If the inputs are not images, the architecture is unknown, or it does not take images of this size.

    References
    ----------
    TorchVision maintainers 2016, TorchVision: PyTorch's computer vision library, github.com/pytorch/vision.
    """
    from torchvision import models  # takes a second, and not every model needs it

    channels, height, width = image_shape("torchvision", shape)
    names = models.list_models(models)
    if architecture not in names:
        close = difflib.get_close_matches(architecture, names)
        raise ValueError(f"architecture = {architecture!r} is unknown; choose {' or '.join(close or names)}")
    settings = SETTINGS.get(architecture, {})
    if architecture.startswith("vit_"):
        settings = {"image_size": height}
    elif architecture.startswith("maxvit_"):
        settings = {"input_size": (height, width)}
    try:
        model = models.get_model(architecture, weights=None, num_classes=classes, **settings)
    except (AssertionError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise ValueError(
            f"shape = {tuple(shape)}: {architecture} does not take images of {height}x{width}: {reason}"
        ) from error
    set_input_channels_(model, channels)
    return model
