"""Steps of an optimiser of the user's own: any `torch.optim.Optimizer`."""

from collections.abc import Callable
from typing import Any, NoReturn

import numpy as np
import torch
from torch import Tensor

from fedsim.models.params import Params, dense, laid_out_as
from fedsim.shortening import a_type
from fedsim.training.clipping import clipped
from fedsim.training.learner import Learner
from fedsim.training.parameter_groups import ParameterGroup
from fedsim.training.settings import LocalSettings

NUMBER = "="  # ends the name of a slot that holds a number and no tensor


def local(params: list[dict[str, Any]], lr: float) -> NoReturn:
    """Take the optimiser that ``[local]`` chooses."""
    raise ValueError("the optimiser is that of [local]; name one of your own")


class OwnOptimizer:
    """The optimiser of one phase, with the methods of `fedsim.training.optimizer.Optimizer`.

    What it keeps of each parameter outlives the phase, by names ``slot/parameter``, and nothing else does.

    Parameters
    ----------
    settings, learner, group_of, state, of
        As there; ``settings.optimizer`` is a function.

    Raises
    ------
    ValueError
        If it is to train a cohort.
    """

    def __init__(
        self,
        settings: LocalSettings,
        learner: Learner,
        group_of: Callable[[str], ParameterGroup],
        state: Params,
        of: str = "",
    ) -> None:
        if learner.stacked:
            raise ValueError("an optimiser of your own trains one client at a time")
        self._settings, self._group_of, self._state, self._of = settings, group_of, state, of
        self._leaves: Params = {}

    def begin(self, leaves: Params, differ: np.ndarray) -> None:
        """Begin steps on parameters; ``differ`` is for cohorts.

        Raises
        ------
        ValueError
            If the function makes no optimiser, or one that leaves a parameter out.
        """
        make, self._leaves = self._settings.optimizer, leaves
        assert callable(make)
        together: dict[float, list[Tensor]] = {}
        for name, leaf in leaves.items():
            together.setdefault(self._group_of(name).lr_scale, []).append(leaf)
        self._optimizer = make(
            [{"params": each, "lr_scale": scale} for scale, each in together.items()], self._settings.lr
        )
        if not isinstance(self._optimizer, torch.optim.Optimizer):
            raise ValueError(f"gives {a_type(self._optimizer)}, and must give a torch.optim.Optimizer")
        taken = {leaf for group in self._optimizer.param_groups for leaf in group["params"]}
        if left := [name for name, leaf in leaves.items() if leaf not in taken]:
            raise ValueError(f"leaves out {left[0]}; give the optimiser all of params")
        for name, values in (kept := self._kept()).items():
            self._optimizer.state[leaves[name]] = values
        continues = self._settings.optimizer_state == "keep" or bool(kept)
        self._besides = self._kept_besides() if continues else None

    def step_(self, gradients: Params, lr_of: Callable[[int], float]) -> None:
        """Take a step.

        Parameters
        ----------
        gradients, lr_of
            As in `fedsim.training.optimizer.Optimizer.step_`.

        Raises
        ------
        ValueError
            If the optimiser keeps something with which it could not continue.
        """
        gradients = dense(gradients)
        if self._settings.clip_norm is not None:
            gradients = clipped(gradients, self._settings.clip_norm, stacked=False)
        for name, leaf in self._leaves.items():
            leaf.grad = gradients.get(name)
        for group in self._optimizer.param_groups:
            group["lr"] = lr_of(0) * group.get("lr_scale", 1.0)
        self._optimizer.step()
        for name, leaf in self._leaves.items():
            for slot, value in self._optimizer.state.get(leaf, {}).items():
                self._keep(slot, name, value)
        if self._besides is not None and (changed := _differing(self._besides, self._kept_besides())):
            raise ValueError(
                f"keeps {changed!r} for all parameters together, which no later round or phase continues; keep it in "
                "the state of each parameter, or choose local.optimizer_state = 'reset' and a method that trains each "
                "layer in one phase"
            )

    def _keep(self, slot: str, name: str, value: object) -> None:
        if isinstance(value, Tensor):
            self._state[f"{slot}/{self._of}{name}"] = value
        elif isinstance(value, int | float):
            kept = torch.tensor(value, dtype=torch.float64 if isinstance(value, float) else None)
            self._state[f"{slot}{NUMBER}/{self._of}{name}"] = kept
        elif value is not None:
            raise ValueError(f"keeps {a_type(value)} as {slot!r} of a parameter; let it keep tensors and numbers there")

    def _kept(self) -> dict[str, dict[str, Any]]:
        """Return what is kept, by parameter and slot."""
        found: dict[str, dict[str, Any]] = {}
        for key, value in self._state.items():
            slot, _, whose = key.partition("/")
            name = whose.removeprefix(self._of)
            if whose.startswith(self._of) and name in self._leaves:
                leaf = self._leaves[name]
                own = laid_out_as(value, leaf) if value.shape == leaf.shape else value
                found.setdefault(name, {})[slot.removesuffix(NUMBER)] = own.item() if slot.endswith(NUMBER) else own
        return found

    def _kept_besides(self) -> list[dict[str, float]]:
        """Return the numbers that it keeps besides: in its attributes, and in its groups, without their step size."""
        found = []
        for place in (vars(self._optimizer), *self._optimizer.param_groups):
            numbers = {
                key: value.item() if isinstance(value, Tensor) else value
                for key, value in place.items()
                if isinstance(value, int | float) or (isinstance(value, Tensor) and value.numel() == 1)
            }
            found.append({key: value for key, value in numbers.items() if key != "lr"})
        return found


def _differing(before: list[dict[str, float]], now: list[dict[str, float]]) -> str | None:
    """Return the first name whose number has changed or is new."""
    pairs = zip(before, now, strict=True)
    return next((key for old, new in pairs for key, value in new.items() if old.get(key) != value), None)
