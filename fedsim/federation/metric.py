"""A metric of the user's own: made, tried before the run, and computed."""

from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

from fedsim.config import Config
from fedsim.config.choices import CATALOGUES
from fedsim.data.dataset import Dataset
from fedsim.errors import ConfigError
from fedsim.shortening import a_type
from fedsim.training.metrics import LOWER, OWN
from fedsim.training.tasks import OWN_METRICS

# Examples on which it is tried.
TRIED = 100
Measure = Callable[[Tensor, Tensor], dict[str, float]]


def make_metric(config: Config) -> Measure | None:
    """Return a function that computes the metric of ``[metric]``, or None if there is none.

    It takes a model's outputs and the targets of all examples, as the task's loss does, on the CPU, and returns its
    numbers by the names that the records have. It may change what it takes.

    Raises
    ------
    ConfigError
        If it cannot be imported or an option is wrong; and, when it is called, for its own errors, and if it does not
        return its numbers.
    """
    chosen = config.metric
    if chosen.name in OWN_METRICS:
        return None
    compute, names = CATALOGUES["metrics"].maker(chosen), chosen.measured

    def measure(outputs: Tensor, targets: Tensor) -> dict[str, float]:
        # Made in inference mode, they could not be changed.
        found = compute(outputs.clone(), targets.clone())
        if not isinstance(found, Mapping) and len(names) == 1:
            return {names[0]: _number(found, chosen.name)}
        plain = {name.removeprefix(OWN).removesuffix(LOWER): name for name in names}
        if not isinstance(found, Mapping) or set(found) != set(plain):
            what = ", ".join(map(str, found)) if isinstance(found, Mapping) else a_type(found)
            raise ConfigError(
                f"metric.name = {chosen.name!r} returns {what or 'nothing'}, not {', '.join(plain)}; return a "
                "dictionary of what metric.gives names, or change that"
            )
        return {name: _number(found[each], chosen.name) for each, name in plain.items()}

    return measure


def check_metric(config: Config, dataset: Dataset, model: nn.Module) -> None:
    """Try the metric on the first test examples.

    Raises
    ------
    ConfigError
        As `make_metric`.
    """
    if measure := make_metric(config):
        examples = dataset.test[torch.arange(min(TRIED, len(dataset.test)), device=dataset.test.targets.device)]
        with torch.inference_mode():
            outputs = model(dataset.normalise(examples.inputs))
        measure(outputs.cpu(), examples.targets.cpu())


def _number(value: object, name: str) -> float:
    try:
        return float(value)  # type: ignore[arg-type]
    except (TypeError, ValueError, RuntimeError) as error:
        shape = f" of shape {tuple(value.shape)}" if isinstance(value, Tensor) else ""
        raise ConfigError(
            f"metric.name = {name!r} returns {a_type(value)}{shape} and not a number; return a float, "
            "NaN where it is not defined"
        ) from error
