"""A model's layers in two parts, both of which can be trained, a linear layer as its head, and rules that know it."""

from torch import nn

from fedsim.models.asymmetry import fixed_entries
from fedsim.models.layers import LayerGroup, Layers
from fedsim.strategy import ClientRule


class HeadRule(ClientRule):
    """A rule that knows the layer which its strategy's option ``head`` names, whose inputs are the features."""

    head: str

    def prepare(self) -> None:
        self._head = self.layers.group(self.head).layers[0]


def two_parts(layers: Layers, option: str, expression: str) -> tuple[LayerGroup, LayerGroup]:
    """Return the layer group of an expression, and all other layers.

    Parameters
    ----------
    option
        Name of the option that holds the expression, for messages.

    Raises
    ------
    ValueError
        If the expression cannot be read, or one of the parts has no parameter.
    """
    part, rest = layers.group(expression), layers.group(f"!({expression})")
    for group, which in ((part, "the group itself"), (rest, "the other layers")):
        if not layers.keys(group, buffers=False):
            names = ", ".join(layers.names)
            raise ValueError(f"{option} = {expression!r} leaves nothing to train in {which}; layers are: {names}")
    return part, rest


def linear_head(model: nn.Module, layers: Layers, option: str, expression: str, *, with_bias: bool = False) -> str:
    """Return the name of the one linear layer of an expression.

    Raises
    ------
    ValueError
        If the expression cannot be read, or is anything else, such as a linear layer with a parametrised weight, or one
        without the bias that is asked for.
    """
    head = layers.group(expression)
    module = dict(model.named_modules()).get("".join(head.layers[:1]))
    own = {key.rpartition(".")[2] for key in layers.keys(head)}
    is_plain = len(head) == 1 and isinstance(module, nn.Linear) and own == dict(module.named_parameters()).keys()
    if not is_plain or (with_bias and "bias" not in own):
        wanted = "a linear layer with a bias" if with_bias else "a plain linear layer"
        found = ", ".join(head) or "nothing"
        remedy = "name that layer"
        if len(head) == 1 and fixed_entries(model).keys() & set(layers.keys(head)):
            remedy = "let [model.asymmetry] fixed name other layers, such as {body = 0.125}"
        raise ValueError(f"{option} = {expression!r} is {found}; it must be {wanted}; {remedy}")
    return head.layers[0]
