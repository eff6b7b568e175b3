"""Models: ``MODELS`` maps a name to its function.

A model is a function ``model(shape, classes, *, options) -> nn.Module``. ``shape`` is the shape of one input:

- (channels, height, width) of an image, or (features,) of a vector; the result maps [n, *shape] to logits [n, classes].
- (length,) of a token sequence; inputs are int64, shape [n, length], with values below ``classes``, which is the size
  of the vocabulary. The option ``predict`` chooses the result: ``each`` is a prediction of the next token at each
  position, logits [n, classes, length] (the class is dimension 1, as in `torch.nn.functional.cross_entropy`);
  ``last`` is one of the token after the last, logits [n, classes].

A shape that a model does not take is a ``ValueError``. Convolutional models have the option ``norm``
(`fedsim.models.architectures.norm`); its default is ``group`` where the architecture's paper normalises, and ``none``
where it does not. The last linear layer is the classifier, so that the layer group ``head`` means the same for all.
Weights are drawn from torch's global random state.
"""

from collections.abc import Callable

from torch import nn

from fedsim.models.architectures.char_lstm import char_lstm
from fedsim.models.architectures.cnn import cnn
from fedsim.models.architectures.gpt import gpt
from fedsim.models.architectures.lenet import lenet5
from fedsim.models.architectures.mlp import mlp
from fedsim.models.architectures.mobilenet import mobilenet
from fedsim.models.architectures.resnet import resnet18
from fedsim.models.architectures.resnet20 import resnet20
from fedsim.models.architectures.torchvision import torchvision
from fedsim.models.architectures.vgg import vgg11, vgg16
from fedsim.models.architectures.vit import vit

MODELS: dict[str, Callable[..., nn.Module]] = {
    "mlp": mlp,
    "lenet5": lenet5,
    "cnn": cnn,
    "vgg11": vgg11,
    "vgg16": vgg16,
    "resnet18": resnet18,
    "resnet20": resnet20,
    "mobilenet": mobilenet,
    "vit": vit,
    "char-lstm": char_lstm,
    "gpt": gpt,
    "torchvision": torchvision,
}
