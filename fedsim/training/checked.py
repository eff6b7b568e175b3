"""The hooks of a client's rule, called and checked: a mistake is named by its hook, not by where it shows later."""

from collections.abc import Collection, Mapping
from numbers import Real

from torch import Tensor

from fedsim.errors import ClientError
from fedsim.models.params import Params
from fedsim.training.context import Local, Step
from fedsim.training.rule import ClientRule, Finished, Ruled

LOSS = "a tensor with one value that depends on step.params, as step.loss_of(step.logits(step.params)) does"


def start_of(rule: ClientRule, local: Local) -> Local:
    """Return a client as its rule starts it.

    Raises
    ------
    ClientError
        If it is something else, here and in the other functions.
    """
    where, started = _hook(rule, "start"), rule.start(local)
    if not isinstance(started, Local):
        raise ClientError(
            f"{where} returns {_kind(started)}; return a client, as dataclasses.replace(local, ...) gives"
        )
    _check_sets(started.sets, f"{where}: sets")
    return started


def loss_of(rule: ClientRule, step: Step) -> Tensor:
    """Return the loss of a step, one number."""
    where, loss = _hook(rule, "loss"), rule.loss(step)
    if not isinstance(loss, Tensor):
        raise ClientError(f"{where} returns {_kind(loss)}; return {LOSS}")
    if loss.numel() != 1:
        raise ClientError(f"{where} returns the shape {tuple(loss.shape)}; return {LOSS}")
    return loss


def backward(ruled: Ruled, loss: Tensor) -> None:
    """Compute the gradients of a loss, the sum over the clients where there are several."""
    if not loss.requires_grad:  # which a loss under vmap never does
        left = "without a gradient, as torch.no_grad, detach or item leave it"
        if ruled.has_loss:
            raise ClientError(f"{_hook(ruled.rule, 'loss')} returns a loss {left}; return {LOSS}")
        raise ClientError(f"the model or the loss gives a loss {left}; remove that from its code")
    loss.backward()


def gradient_of(rule: ClientRule, step: Step, gradients: Params, *, trained: Collection[str]) -> Params:
    """Return the gradients of a step, of all entries that have one, and perhaps of others of those that are trained."""
    where, changed = _hook(rule, "gradient"), rule.gradient(step, gradients)
    _check_tensors(changed, where)
    if unknown := [key for key in changed if key not in trained]:
        raise ClientError(
            f"{where} returns {unknown[0]!r}, which this phase does not train; return one for each gradient"
        )
    for key, gradient in gradients.items():
        if key not in changed:
            raise ClientError(
                f"{where} returns no {key!r}; return one for each gradient, zeros where nothing should change"
            )
        if changed[key].shape != gradient.shape:
            shapes = f"{tuple(changed[key].shape)}, not {tuple(gradient.shape)}"
            raise ClientError(f"{where} returns {key!r} of the shape {shapes}")
    return changed


def finish_of(rule: ClientRule, local: Local, started: Local, entries: Collection[str]) -> Finished:
    """Return what a client keeps and sends; ``entries`` are those of a whole model."""
    where, finished = _hook(rule, "finish"), rule.finish(local, started)
    if not isinstance(finished, Finished):
        raise ClientError(f"{where} returns {_kind(finished)}; return Finished(local.params, ...)")
    _check_model(finished.params, entries, where)
    _check_sets(finished.kept, f"{where}: kept")
    _check_sets(finished.sent, f"{where}: sent")
    for name, value in finished.metrics.items():
        if not isinstance(value, Real):
            raise ClientError(f"{where}: metrics[{name!r}] is {_kind(value)}; it must be a number, as float(...) gives")
    return finished


def personalised_of(rule: ClientRule, local: Local, entries: Collection[str]) -> Params:
    """Return what a client is evaluated with; ``entries`` as in `finish_of`."""
    params = rule.personalised(local)
    _check_model(params, () if rule.has_network else entries, _hook(rule, "personalised"))
    return params


def not_tensors(entries: object) -> str:
    """Return what is in the place of a dict of tensors with keys of text; empty if it is one."""
    if not isinstance(entries, Mapping):
        return _kind(entries)
    for key, value in entries.items():
        if not isinstance(key, str):
            return f"a dict with the key {key!r}"
        if not isinstance(value, Tensor):
            return f"a dict with {_kind(value)} as {key!r}"
    return ""


def _hook(rule: ClientRule, name: str) -> str:
    return f"{type(rule).__name__}.{name}"


def _kind(value: object) -> str:
    name = type(value).__name__
    return f"{'an' if name[0] in 'aeiouAEIOU' else 'a'} {name}" if value is not None else "None"


def _check_tensors(entries: object, where: str) -> None:
    if wrong := not_tensors(entries):
        raise ClientError(f"{where} returns {wrong}; return a dict of tensors by key")


def _check_model(params: Params, entries: Collection[str], where: str) -> None:
    _check_tensors(params, where)
    if missing := [key for key in entries if key not in params]:
        raise ClientError(f"{where} returns no {missing[0]!r}; return all entries of the model, as in local.params")


def _check_sets(sets: Mapping[str, object], where: str) -> None:
    for name, entries in sets.items():
        if wrong := not_tensors(entries):
            raise ClientError(f"{where}[{name!r}] is {wrong}; it must be a dict of tensors by key")
