"""Merged models whose activations have lost their variance, repaired with inputs: REPAIR and its steps."""

import copy
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from fedsim.alignment.merging.shares import shares_of
from fedsim.alignment.repair.moments import Moments, moments_of
from fedsim.alignment.repair.sites import ChannelSite, sites_of, traced
from fedsim.models.copies import copy_of
from fedsim.models.graph import Operation
from fedsim.models.norms import StatisticsNorm
from fedsim.models.params import Params, fit, fit_all, load_state_, state_of
from fedsim.training.buffers import recompute_buffers_
from fedsim.training.evaluation import EVALUATION_BATCH, examples_at_a_time

Kind = Literal["repair", "rescale", "reshift"]
# A function of an operation's position, arguments and result that returns the result to continue with.
Visit = Callable[[int, Sequence[Any], Any], Any]


def repair(
    model: nn.Module,
    merged: Params,
    members: Sequence[Params],
    inputs: Tensor,
    *,
    weights: Sequence[float] | None = None,
    kind: Kind = "repair",
) -> Params:
    """Return the merged model with each channel's mean and standard deviation set to the members' weighted means.

    This applies to the outputs of linear layers, convolutions and normalisations with weights, except layers directly
    followed by a normalisation and the classifier, the last layer. Each is corrected after all those before it, so that
    on these inputs the result has exactly the target moments. Without a bias only the standard deviation can be
    corrected. Modules that hold several weights (attention, recurrent layers), transposed convolutions and weights that
    are used twice do not change, nor do frozen layers or constant channels, except for their mean.

    Parameters
    ----------
    model
        Model with the architecture; it is not changed, and is run in eval mode.
    merged
        All entries of the members' weighted average.
    members
        All entries of the merged models, with their units in the order of the merged model's.
    inputs
        A few hundred inputs as the model takes them, shape [n, ...]; the merged model's results for all of them are
        kept in memory, while the members process them in batches.
    weights
        One positive number per member (default: equal).
    kind
        Moments to correct: ``rescale`` for standard deviations only, ``reshift`` for means only, or both.

    Raises
    ------
    ValueError
        If there are fewer than two inputs, the kind is unknown, the model is not a graph of operations on single
        examples, an entry does not match it, or the weights do not match the members.

    Notes
    -----
    Batch normalisation first takes its running statistics from its new inputs, all as one batch; then its weight and
    bias are corrected. So the model is the same in training and in eval mode. Frozen statistics do not change. The
    paper corrects batch-normalised networks by new statistics alone (`reset_statistics`).

    References
    ----------
    Jordan et al. 2023, REPAIR: REnormalizing Permuted Activations for Interpolation Repair, arXiv 2211.08403.
    """
    if kind not in get_args(Kind):
        raise ValueError(f"kind = {kind!r} must be one of {', '.join(get_args(Kind))}")
    shares = shares_of(members, weights)
    _check_inputs(inputs)
    fitted, params = fit_all(model, members, 1), fit(model, merged, "the merged model")
    operations, root = traced(model, params, inputs)
    sites = sites_of(operations, root)
    measured = [_measured(operations, sites, root, member, inputs) for member in fitted]
    goals = _goals(sites, measured, shares)

    def correct(i: int, arguments: Sequence[Any], value: Any) -> Any:
        if i not in sites:
            return value
        if sites[i].statistics:
            params.update(_new_statistics(operations[i], root, params, arguments[0]))
            value = _run(operations[i], root, arguments, params)
        params.update(_corrected(sites[i], params, moments_of(value, sites[i].dimension), *goals[i], kind))
        return _run(operations[i], root, arguments, params)

    _visit(operations, root, params, inputs, correct)
    return params


def reset_statistics(model: nn.Module, params: Params, inputs: Tensor) -> Params:
    """Return a model whose running statistics are the mean over batches of the inputs, except frozen ones.

    Parameters
    ----------
    model
        Model with the architecture; it is not changed.
    params
        All entries of the model.
    inputs
        Inputs as the model takes them, shape [n, ...].

    Raises
    ------
    ValueError
        If there are fewer than two inputs, or an entry does not match the model.
    """
    _check_inputs(inputs)
    fitted = fit(model, params, "the model")
    if not any(isinstance(module, StatisticsNorm) for module in model.modules()):
        return fitted
    root = copy_of(model)
    load_state_(root, fitted)
    recompute_buffers_(root, inputs, EVALUATION_BATCH)
    parameters = {key for key, _ in model.named_parameters()}
    return {key: fitted[key] if key in parameters else value for key, value in state_of(root).items()}


def _check_inputs(inputs: Tensor) -> None:
    if len(inputs) < 2:
        raise ValueError(f"there are {len(inputs)} inputs; statistics need at least 2, preferably some hundreds")


def _visit(operations: Sequence[Operation], root: nn.Module, params: Params, inputs: Tensor, visit: Visit) -> None:
    """Run a model operation by operation; ``visit`` may change the parameters."""
    last_use = {k: i for i, each in enumerate(operations) for k in each.inputs}
    results: dict[int, Any] = {0: inputs}
    with torch.no_grad():
        for i, each in enumerate(operations[1:], 1):
            arguments = [results[k] for k in each.inputs]
            value = visit(i, arguments, _run(each, root, arguments, params))
            results[i] = each.finish(root, value)
            for k in {*each.inputs}:
                if last_use[k] == i:
                    del results[k]


def _run(operation: Operation, root: nn.Module, arguments: Sequence[Any], params: Params) -> Any:
    return operation.run(root, arguments, {entry.name: params[entry.key] for entry in operation.entries})


def _measured(
    operations: Sequence[Operation], sites: Mapping[int, ChannelSite], root: nn.Module, params: Params, inputs: Tensor
) -> dict[int, Moments]:
    """Return the moments of a model at each site."""
    measured: dict[int, Moments] = {}

    def measure(i: int, arguments: Sequence[Any], value: Any) -> Any:
        if i in sites:
            moments = moments_of(value, sites[i].dimension)
            measured[i] = measured[i].and_also(moments) if i in measured else moments
        return value

    for batch in inputs.split(examples_at_a_time(inputs.device)):
        _visit(operations, root, params, batch, measure)
    return measured


def _goals(
    sites: Mapping[int, ChannelSite], measured: Sequence[Mapping[int, Moments]], shares: Sequence[float]
) -> dict[int, tuple[Tensor, Tensor]]:
    """Return the members' weighted mean and their weighted standard deviation at each site."""
    goals = {}
    for i in sites:
        means, stds = (torch.stack(values) for values in zip(*((m[i].mean, m[i].std) for m in measured), strict=True))
        weights = torch.tensor(shares, dtype=means.dtype, device=means.device)
        goals[i] = weights @ means, weights @ stds
    return goals


def _new_statistics(operation: Operation, root: nn.Module, params: Params, value: Tensor) -> Params:
    """Return the entries of a normalisation with running statistics, with those of ``value``."""
    norm = copy.deepcopy(root.get_submodule(str(operation.node.target)))
    own = {entry.name: params[entry.key] for entry in operation.entries}
    norm.load_state_dict(own, strict=False)  # frozen entries are not among them
    recompute_buffers_(norm, value, len(value))
    buffers = dict(norm.named_buffers())
    return {entry.key: buffers[entry.name] for entry in operation.entries if entry.name in buffers}


def _corrected(site: ChannelSite, params: Params, own: Moments, mean: Tensor, std: Tensor, kind: Kind) -> Params:
    """Return the entries that give a site the target moments, given its own."""
    if site.weight is None:
        return {}
    stays = torch.ones_like(own.is_constant) if kind == "reshift" else own.is_constant
    scale = torch.where(stays, 1.0, std / own.std)
    goal = own.mean if kind == "rescale" else mean
    weight = params[site.weight]
    new = {site.weight: (weight.double() * scale.view(-1, *[1] * (weight.ndim - 1))).to(weight)}
    if site.bias is not None:
        bias = params[site.bias]
        new[site.bias] = (scale * (bias.double() - own.mean) + goal).to(bias)
    return new
