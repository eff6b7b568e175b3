"""Evaluation of a client's model together with the nearest neighbours among the client's training examples."""

from collections.abc import Callable

import torch
from torch import Tensor

from fedsim.federation.client.state import NEIGHBOURS, metric_name
from fedsim.federation.data import ClientData, InputsAndTargets
from fedsim.federation.federation import Federation
from fedsim.models.params import state_of
from fedsim.training import Network
from fedsim.training.evaluation import EVALUATION_BATCH, Evaluation, batch_sizes, losses_and_errors
from fedsim.training.neighbours import best_weight, mixed_logits, neighbour_shares
from fedsim.training.targets import IGNORED, number_of_targets

UNDECIDED = 0.5  # weight of the neighbours where a client has no validation data


def neighbour_metrics(
    federation: Federation, model: torch.nn.Module, data: ClientData, parts: dict[str, InputsAndTargets]
) -> dict[str, float]:
    """Evaluate the mixture of a model and its nearest neighbours, by ``knn/split/metric``.

    The weight of the neighbours is the config's, or the best one on the client's validation data.

    Parameters
    ----------
    model
        The client's model, loaded.
    parts
        What it is measured on, by split.
    """
    settings, see = federation.config.evaluation, _seen_by(federation, model)
    inputs, labels = data.train
    inputs, labels = inputs[labels != IGNORED], labels[labels != IGNORED]
    with torch.inference_mode():
        stored = see(inputs)[1]

        def both(inputs: Tensor) -> tuple[Tensor, Tensor]:
            logits, features = see(inputs)
            k, scale = settings.knn_neighbours, settings.knn_scale
            return logits, neighbour_shares(features, stored, labels, logits.shape[1], k, scale)

        weight = settings.knn_weight
        if weight is None:
            validation = data.validation
            weight = best_weight(*both(validation[0]), validation[1]) if len(validation[1]) else UNDECIDED
        metrics: dict[str, float] = {}
        for split, (inputs, targets) in parts.items():
            outputs = mixed_logits(*both(inputs), weight)
            losses, errors = losses_and_errors(outputs, targets, federation.criterion)
            result = Evaluation(losses.cpu().double(), errors.cpu().double(), None, outputs.cpu())
            measured = federation.measured(result, targets) | {"n": number_of_targets(targets)}
            metrics |= {metric_name(NEIGHBOURS, split, metric): value for metric, value in measured.items()}
    return metrics


def _seen_by(federation: Federation, model: torch.nn.Module) -> Callable[[Tensor], tuple[Tensor, Tensor]]:
    """Return a function that gives a model's logits and the features that its head gets."""
    network, params, [head] = Network(model), state_of(model), federation.layers.group("head").layers

    def see(inputs: Tensor) -> tuple[Tensor, Tensor]:
        batches = inputs.split(batch_sizes(len(inputs), EVALUATION_BATCH))
        logits, features = zip(*(network.logits_and_features(params, batch, head) for batch in batches), strict=True)
        return torch.cat(logits), torch.cat(features)

    return see
