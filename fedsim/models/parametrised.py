"""Parametrised weights that averages, mixes and messages can take as they are: real, and right in evaluation."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize
from torch.nn.utils.parametrizations import _SpectralNorm
from torch.nn.utils.spectral_norm import SpectralNorm

from fedsim.models.frozen import unsettle_


class Complex(nn.Module):
    """A complex weight as a view of a real parameter, with a last dimension of real and imaginary parts."""

    def forward(self, parts: Tensor) -> Tensor:
        """Return the complex weight."""
        return torch.view_as_complex(parts)

    def right_inverse(self, weight: Tensor) -> tuple[Tensor]:
        """Return the parts; as a tuple, since torch lets a single tensor not change its type."""
        return (torch.view_as_real(weight).contiguous().clone(),)


class ExactSpectralNorm(_SpectralNorm):
    """A spectral norm that divides by the exact largest singular value in evaluation.

    Torch takes the value from the vectors of its last power iteration in training, which do not belong to a weight that
    was averaged or mixed since.
    """

    def forward(self, weight: Tensor) -> Tensor:
        """Return the weight with a largest singular value of 1; in training by the power iteration, as in torch."""
        if self.training or weight.ndim == 1:
            return super().forward(weight)
        return weight / torch.linalg.matrix_norm(self._reshape_weight_to_matrix(weight), 2)


class ExactSpectralHook(SpectralNorm):
    """The same for `torch.nn.utils.spectral_norm`, the older form, which computes the weight in a hook."""

    def compute_weight(self, module: nn.Module, do_power_iteration: bool) -> Tensor:
        """Return the weight with a largest singular value of 1."""
        if do_power_iteration:
            return super().compute_weight(module, do_power_iteration)
        weight = getattr(module, f"{self.name}_orig")
        return weight / torch.linalg.matrix_norm(self.reshape_weight_to_matrix(weight), 2)


def parametrise_(model: nn.Module) -> None:
    """Make complex parameters views of real ones, and spectral norms exact in evaluation.

    Everything else then sees parameters that are real, under keys such as ``parametrizations.weight.original0``.

    Raises
    ------
    ValueError
        If a complex parameter belongs to a compiled module.
    """
    tied: dict[int, list[tuple[nn.Module, str]]] = {}
    for module in list(model.modules()):
        if isinstance(module, _SpectralNorm):
            module.__class__ = ExactSpectralNorm
        for hook in module._forward_pre_hooks.values():
            if isinstance(hook, SpectralNorm):
                hook.__class__ = ExactSpectralHook
        for name, parameter in module._parameters.items():
            if parameter is not None and parameter.is_complex():
                if isinstance(module, torch.jit.ScriptModule):
                    raise ValueError(f"the complex parameter {name!r} is in compiled code; give the module itself")
                tied.setdefault(id(parameter), []).append((module, name))
    for owners in tied.values():
        _make_real_(owners)


def plain_(model: nn.Module) -> None:
    """Undo `parametrise_`: complex parameters, and torch's spectral norms with the vectors of their weights."""
    unsettle_(model)  # its layers may have had other keys
    for module in list(model.modules()):
        if isinstance(module, ExactSpectralNorm):
            module.__class__ = _SpectralNorm  # type: ignore[assignment]
        for hook in module._forward_pre_hooks.values():
            if isinstance(hook, ExactSpectralHook):
                hook.__class__ = SpectralNorm  # type: ignore[assignment]
                weight = getattr(module, f"{hook.name}_orig").detach()
                vectors = (getattr(module, f"{hook.name}_{each}") for each in "uv")
                _set_vectors_(hook.reshape_weight_to_matrix(weight), *vectors)
        if not parametrize.is_parametrized(module):
            continue
        own_class_(module)
        lists: Any = module.parametrizations
        for name, own in list(lists.items()):
            if isinstance(own[0], Complex):
                needs_gradient = own.original0.requires_grad
                parametrize.remove_parametrizations(module, name)
                getattr(module, name).requires_grad_(needs_gradient)
                continue
            for each in own:
                if isinstance(each, _SpectralNorm) and own.original.ndim > 1:
                    _set_vectors_(each._reshape_weight_to_matrix(own.original.detach()), each._u, each._v)


def own_class_(module: nn.Module) -> None:
    """Give a module its own class: torch removes a weight's property from the class, which copies share."""
    shared = type(module)
    module.__class__ = type(shared.__name__, shared.__bases__, dict(vars(shared)))


def _set_vectors_(matrix: Tensor, u: Tensor, v: Tensor) -> None:
    left, _, right = torch.linalg.svd(matrix, full_matrices=False)
    u.copy_(left[:, 0])
    v.copy_(right[0])


def _make_real_(owners: list[tuple[nn.Module, str]]) -> None:
    """Make one complex parameter, which several modules may share, a view of a real one."""
    needs_gradient = getattr(*owners[0]).requires_grad
    lists: list[Any] = []
    for module, name in owners:
        parametrize.register_parametrization(module, name, Complex(), unsafe=True)
        lists.append(module.parametrizations[name])  # type: ignore[index]
        lists[-1].original0 = lists[0].original0.requires_grad_(needs_gradient)
