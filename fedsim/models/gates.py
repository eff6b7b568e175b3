"""Gates in place of activations, sigmoid(F x) * x with a fixed matrix F: sigma-asymmetric networks."""

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import linear
from torch.overrides import TorchFunctionMode, resolve_name

from fedsim import seeds
from fedsim.models.copies import copy_of

ACTIVATIONS = (
    *(nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.ELU, nn.CELU, nn.SELU, nn.GELU, nn.SiLU, nn.Mish, nn.Hardswish, nn.Tanh),
)
FUNCTIONS = {"relu", "relu6", "leaky_relu", "elu", "celu", "selu", "gelu", "silu", "mish", "hardswish", "tanh"}
CONVOLUTIONS: dict[type[nn.Module], int] = {nn.Conv1d: 1, nn.Conv2d: 2, nn.Conv3d: 3}


class Gate(nn.Module):
    """The activation sigmoid(F x) * x, where F mixes the features at each position.

    Parameters
    ----------
    dimension
        Dimension of the features, counted from the last, which is -1.
    """

    def __init__(self, dimension: int) -> None:
        super().__init__()
        self.dimension = dimension

    def add_(self, factor: Tensor) -> None:
        """Add the matrix for inputs of its width, shape [width, width]."""
        self.register_buffer(f"factor_{len(factor)}", factor, persistent=False)

    def forward(self, inputs: Tensor) -> Tensor:
        """Return the gated inputs."""
        factor: Any = getattr(self, f"factor_{inputs.shape[self.dimension]}")
        # Analyses probe activations in float64, whatever the model's type.
        mixed = linear(inputs.movedim(self.dimension, -1), factor.to(inputs.dtype)).movedim(-1, self.dimension)
        return mixed.sigmoid() * inputs


def gate_(model: nn.Module, kappa: float, seed: int, inputs: Tensor) -> None:
    """Replace the activations of a model by gates; their matrices follow from ``seed`` and their modules' paths.

    Parameters
    ----------
    kappa
        Factor for the entries of F, which are standard normal after linear layers, and divided by the square root of
        the width after convolutions, as in the paper.
    inputs
        A few inputs of the model, normalised, shape [n, ...].

    Raises
    ------
    ValueError
        If no activation of the model is a module, or one is a function.

    Notes
    -----
    A module that is called at several places has one matrix for all those of equal width.
    """
    modules = {path: module for path, module in model.named_modules() if isinstance(module, ACTIVATIONS)}
    found = _Seen(copy_of(model).eval(), inputs[:2]).found
    if not found:
        raise ValueError(
            "kind = 'sigma' gates activations that are modules, as nn.ReLU is, and the model uses none; use kind = 'w'"
        )
    gates: dict[nn.Module, Gate] = {}
    like = next(model.parameters())
    for path, width, dimension in found:
        gate = gates.setdefault(modules[path], Gate(dimension))
        if gate.dimension != dimension:
            raise ValueError(f"kind = 'sigma' cannot gate {path}, which is called on linear and on convolutional units")
        drawn = torch.from_numpy(seeds.rng(seed, "asymmetry", path, width).standard_normal((width, width)))
        gate.add_((drawn * (kappa / math.sqrt(width) if dimension < -1 else kappa)).to(like))
    for parent in list(model.modules()):
        for name, child in parent._modules.items():
            if child in gates:
                parent._modules[name] = gates[child]


class _Seen(TorchFunctionMode):
    """Runs a model once and notes each activation: the path, and the width and the dimension of its features."""

    def __init__(self, model: nn.Module, inputs: Tensor) -> None:
        super().__init__()
        self.found: dict[tuple[str, int, int], None] = {}
        self._inside, self._spatial = 0, 0
        for path, module in model.named_modules():
            if isinstance(module, ACTIVATIONS):
                module.register_forward_pre_hook(lambda _, args, at=path: self._enter(at, args[0]))
                module.register_forward_hook(self._leave, always_call=True)
            else:
                spatial = next((rank for kind, rank in CONVOLUTIONS.items() if isinstance(module, kind)), None)
                if spatial is not None or isinstance(module, nn.Linear):
                    module.register_forward_hook(lambda *_, rank=spatial or 0: self._note(rank))
        # With gradients, torch's transformers take the path in which their activations can be seen.
        with torch.random.fork_rng(devices=[]), torch.enable_grad(), self:
            model(inputs)

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = (resolve_name(func) or "").rpartition(".")[2].rstrip("_")
        if name in FUNCTIONS and not self._inside:
            raise ValueError(
                f"kind = 'sigma' gates activations that are modules, and the model calls {name} as a function; use "
                "kind = 'w', or write it as a module"
            )
        return func(*args, **(kwargs or {}))

    def _enter(self, path: str, inputs: Tensor) -> None:
        self._inside += 1
        spatial = self._spatial if inputs.ndim == self._spatial + 2 else 0
        self.found[path, inputs.shape[-1 - spatial], -1 - spatial] = None

    def _leave(self, *_: Any) -> None:
        self._inside -= 1

    def _note(self, spatial: int) -> None:
        self._spatial = spatial
