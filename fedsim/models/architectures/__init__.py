"""Models: ``MODELS`` maps a name to its function.

A model is a function ``model(shape, classes, *, options) -> nn.Module``. One that has a parameter ``vocabulary`` gets
the number of different tokens, 0 where inputs are not tokens. ``shape`` is the shape of one input:

- (channels, height, width) of an image, or (features,) of a vector; the result maps [n, *shape] to logits [n, classes].
- (length,) of a token sequence; inputs are int64, shape [n, length], with values below ``vocabulary``. Where the next
  token is predicted, classes are the vocabulary. The option ``predict`` chooses the result: ``each`` is a prediction at
  each position, logits [n, classes, length] (the class is dimension 1, as in `torch.nn.functional.cross_entropy`);
  ``last`` is one at the last position, of the whole sequence, logits [n, classes].

A shape that a model does not take is a ``ValueError``. Convolutional models have the option ``norm``
(`fedsim.models.architectures.norm`); its default is ``group`` where the architecture's paper normalises, and ``none``
where it does not. The last linear layer is the classifier, so that the layer group ``head`` means the same for all.
Weights are drawn from torch's global random state.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING

from fedsim.lazy import LazyTable

if TYPE_CHECKING:
    from torch import nn

MODELS: "LazyTable[Callable[..., nn.Module]]" = LazyTable(
    {
        "mlp": "fedsim.models.architectures.mlp:mlp",
        "lenet5": "fedsim.models.architectures.lenet:lenet5",
        "cnn": "fedsim.models.architectures.cnn:cnn",
        "vgg11": "fedsim.models.architectures.vgg:vgg11",
        "vgg16": "fedsim.models.architectures.vgg:vgg16",
        "resnet18": "fedsim.models.architectures.resnet:resnet18",
        "resnet20": "fedsim.models.architectures.resnet20:resnet20",
        "mobilenet": "fedsim.models.architectures.mobilenet:mobilenet",
        "vit": "fedsim.models.architectures.vit:vit",
        "char-lstm": "fedsim.models.architectures.char_lstm:char_lstm",
        "gpt": "fedsim.models.architectures.gpt:gpt",
        "text-cnn": "fedsim.models.architectures.text_cnn:text_cnn",
        "torchvision": "fedsim.models.architectures.torchvision:torchvision",
        "huggingface": "fedsim.models.architectures.huggingface:huggingface",
    }
)
