"""A model's layers in two parts, both of which can be trained."""

from fedsim.models.layers import LayerGroup, Layers


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
