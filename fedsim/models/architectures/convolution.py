"""Changes of a model's convolutions: He initialisation, and another number of input channels."""

from torch import nn

from fedsim.shortening import a_type


def initialise_convolutions_(model: nn.Module) -> None:
    """Draw the weights of all convolutions as torchvision does for its ResNets and VGGs; biases become 0.

    References
    ----------
    He et al. 2015, Delving deep into rectifiers, arXiv 1502.01852, for the variance of a layer's gradients (fan out).
    """
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            if module.bias is not None:
                nn.init.zeros_(module.bias)


def set_input_channels_(model: nn.Module, channels: int) -> None:
    """Replace the model's first convolution by one with ``channels`` inputs and torch's default weights.

    Nothing else about it changes; a model that already has this number of channels is left alone.

    Raises
    ------
    ValueError
        If the model has no convolution.
    """
    found = ((name, module) for name, module in model.named_modules() if isinstance(module, nn.Conv2d))
    name, first = next(found, ("", None))
    if first is None:
        raise ValueError(f"{a_type(model)} has no convolution that could take {channels} channels")
    if first.in_channels == channels:
        return
    replacement = nn.Conv2d(
        channels,
        first.out_channels,
        first.kernel_size,  # type: ignore[arg-type]
        first.stride,  # type: ignore[arg-type]
        first.padding,  # type: ignore[arg-type]
        first.dilation,  # type: ignore[arg-type]
        first.groups,
        first.bias is not None,
        first.padding_mode,
    )
    model.set_submodule(name, replacement)
