"""Pairs of values, example by example: inputs with targets, and one model's results with another's."""

from typing import Any

from torch import Tensor

from fedsim.analysis.arguments import kind
from fedsim.analysis.data import Data
from fedsim.analysis.samples.sampling import Sampling
from fedsim.training.evaluation import cross_entropies


def check_inputs(inputs: Tensor) -> None:
    """Check that there are inputs, all of them numbers.

    Raises
    ------
    ValueError
        If there are none, or some are not finite.
    """
    if not len(inputs):
        raise ValueError("there are no inputs; give at least one")
    if inputs.is_floating_point() and not bool((finite := inputs.isfinite()).all()):
        bad = int(finite.reshape(len(inputs), -1).all(1).logical_not().nonzero()[0])
        raise ValueError(f"inputs has values that are not finite, first at example {bad}; remove or fill them")


def check_paired(data: Data) -> None:
    """Check that there are examples.

    Raises
    ------
    ValueError
        If there are no inputs, some are not finite, or there are not as many targets.
    """
    check_inputs(data.inputs)
    if len(data.targets) != len(data.inputs):
        raise ValueError(f"there are {len(data.targets)} targets for {len(data.inputs)} inputs; give one for each")


def check_argument(name: str, data: Any) -> None:
    """Check that an argument is data, with examples; errors name it.

    Raises
    ------
    TypeError
        If it is something else.
    ValueError
        If there are no inputs, some are not finite, or there are not as many targets.
    """
    if not isinstance(data, Data):
        raise TypeError(f"{name} is {kind(data)}; give Data(inputs, targets)")
    try:
        check_paired(data)
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from None


def check_outputs(data: Data, outputs: Tensor) -> None:
    """Check that a model's outputs have more than one class, if cross-entropy is taken of them.

    Raises
    ------
    ValueError
        If they have one.
    """
    if data.criterion is cross_entropies and outputs.ndim > 1 and outputs.shape[1] == 1:
        shapes = f"[{', '.join(map(str, ('n', *outputs.shape[1:])))}]", tuple(data.targets.shape)
        raise ValueError(
            f"the model has one output for each example (shape {shapes[0]}, targets of shape {shapes[1]}), of which "
            "cross-entropy is always 0; targets must be indices of two classes or more, or give a criterion, such as "
            "fedsim.training.loss_of('regression')"
        )


def difference_columns(name: str, losses: Tensor, errors: Tensor, sampling: Sampling) -> dict[str, float | str]:
    """Return the columns ``loss_name`` and ``error_name`` of paired differences, shape [n], and their sampling.

    They are means with standard errors ``_se``, which are NaN for a single example.
    """
    columns: dict[str, float | str] = {}
    for measure, differences in (("loss", losses), ("error", errors)):
        spread = sampling.spread(differences[None].numpy())
        columns |= {f"{measure}_{name}": float(spread.mean[0]), f"{measure}_{name}_se": float(spread.error[0])}
    return columns | {"sampling": sampling.text}
