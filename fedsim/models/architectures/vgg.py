"""VGG for small images, with or without normalisation."""

from collections import OrderedDict
from itertools import pairwise

from torch import nn

from fedsim.models.architectures.checks import image_shape
from fedsim.models.architectures.convolution import initialise_convolutions_, set_input_channels_
from fedsim.models.architectures.norm import NORMS, Norm


def vgg11(shape: tuple[int, ...], classes: int, *, norm: Norm = "none", hidden: tuple[int, ...] = ()) -> nn.Module:
    """Build torchvision's VGG-11 for small images: ``features.*``, then ``classifier.*``.

    Poolings that would leave less than one pixel are omitted (``features`` keeps its numbering), so that images smaller
    than 32x32 work. The classifier is one linear layer on the mean over positions.

    Parameters
    ----------
    norm
        Normalisation between convolution and ReLU: ``none`` (as in the paper), ``batch`` (torchvision's ``vgg11_bn``),
        ``group``, ``layer`` or ``frozen-batch``.
    hidden
        Width of each hidden layer of the classifier; the paper has (4096, 4096), with dropout.

    Raises
    ------
    ValueError
        If the inputs are not images, or a width is not positive.

    References
    ----------
    Simonyan and Zisserman 2015, Very deep convolutional networks, arXiv 1409.1556.
    """
    return _vgg("A", image_shape("vgg11", shape), classes, norm, hidden)


def vgg16(shape: tuple[int, ...], classes: int, *, norm: Norm = "none", hidden: tuple[int, ...] = ()) -> nn.Module:
    """Build torchvision's VGG-16 for small images: ``features.*``, then ``classifier.*``.

    Everything else is as in `vgg11`.

    Parameters
    ----------
    norm, hidden
        As in `vgg11`.

    Raises
    ------
    ValueError
        If the inputs are not images, or a width is not positive.

    References
    ----------
    Simonyan and Zisserman 2015, Very deep convolutional networks, arXiv 1409.1556.
    """
    return _vgg("D", image_shape("vgg16", shape), classes, norm, hidden)


def _vgg(
    configuration: str, shape: tuple[int, int, int], classes: int, norm: Norm, hidden: tuple[int, ...]
) -> nn.Module:
    if any(width < 1 for width in hidden):
        raise ValueError(f"hidden = {list(hidden)}: each width must be at least 1")
    channels, height, width = shape
    features = _features(configuration, min(height, width), norm)
    set_input_channels_(features, channels)
    initialise_convolutions_(features)
    widths = [512, *hidden, classes]
    classifier = nn.Sequential()
    for i, (inputs, outputs) in enumerate(pairwise(widths)):
        if i:
            classifier.append(nn.ReLU())
        classifier.append(nn.Linear(inputs, outputs))
    for module in classifier:
        if isinstance(module, nn.Linear):  # as in torchvision
            nn.init.normal_(module.weight, 0, 0.01)
            nn.init.zeros_(module.bias)
    # Not torchvision's class: its constructor draws 124 million weights for the classifier that is replaced here.
    return nn.Sequential(
        OrderedDict(features=features, avgpool=nn.AdaptiveAvgPool2d(1), flatten=nn.Flatten(), classifier=classifier)
    )


def _features(configuration: str, side: int, norm: Norm) -> nn.Sequential:
    """Return torchvision's convolutions with our normalisation, and poolings while ``side`` pixels can be halved."""
    from torchvision.models.vgg import cfgs, make_layers  # takes a second, and not every model needs it

    features: nn.Sequential = make_layers(cfgs[configuration], batch_norm=norm != "none")
    for i, module in enumerate(features):
        if isinstance(module, nn.BatchNorm2d):
            features[i] = NORMS[norm](module.num_features)
        elif isinstance(module, nn.MaxPool2d):
            if side < 2:
                features[i] = nn.Identity()
            side //= 2
    return features
