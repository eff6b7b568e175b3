"""Evaluation of one model, or of many as one vectorised computation, example by example."""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.nn.utils.rnn import pad_sequence

from fedsim.models.params import Params
from fedsim.training.losses import CROSS_ENTROPY, Loss
from fedsim.training.stack import forward_of, stack
from fedsim.training.targets import per_example, target_counts

# Examples per batch: on a CPU, few enough for a layer's results to stay in the cache.
EVALUATION_BATCH, ACCELERATOR_BATCH = 125, 4000

Criterion = Callable[[Tensor, Tensor], Tensor]


def cross_entropies(logits: Tensor, targets: Tensor) -> Tensor:
    """Return the cross-entropy in nats of each example, shape [n]; for a sequence, the mean over its positions.

    Targets of -100 do not count; an example without any other has 0.

    Parameters
    ----------
    logits, targets
        Logits and class indices, shapes [n, classes] and [n], or [n, classes, length] and [n, length].
    """
    return per_example(cross_entropy(logits, targets, reduction="none"), targets)


def mean_over_targets(values: Tensor, counts: Tensor | None) -> float:
    """Return the mean, over all targets that count, of the means of each example; without counts all weigh the same."""
    return float(values.mean() if counts is None else (values * counts).sum() / counts.sum())


@dataclass(frozen=True)
class Evaluation:
    """Results of a model, example by example; means are those over all targets that count.

    Parameters
    ----------
    losses
        Loss of each example, shape [n], float64; in nats for cross-entropy.
    errors
        Error of each example, shape [n], float64: 1 where the most likely class is not the target, else 0; for a
        sequence and several labels, the share of such targets; for regression, the squared error. NaN if what is an
        error is not known, and where the loss is not finite: logits that are no numbers have a most likely class all
        the same, the first.
    counts
        Number of targets of each example that count, shape [n]; None if it is the same for all.
    outputs
        The model's outputs, shape [n, ...], on the CPU, if they are kept.
    """

    losses: Tensor
    errors: Tensor
    counts: Tensor | None = None
    outputs: Tensor | None = None

    def __post_init__(self) -> None:
        if not math.isfinite(self.losses.sum()):
            object.__setattr__(self, "errors", self.errors.where(self.losses.isfinite(), torch.nan))

    @property
    def n(self) -> int:
        """Number of examples."""
        return len(self.losses)

    @property
    def loss(self) -> float:
        """Mean loss: the sum over all targets that count, divided by their number; not finite if that of one is not."""
        return self._mean(self.losses)

    @property
    def accuracy(self) -> float:
        """Share of the targets that are the most likely class; NaN if the loss of one is not finite."""
        return 1.0 - self.error

    @property
    def error(self) -> float:
        """Mean error over all targets that count; NaN if the loss of one is not finite."""
        return self._mean(self.errors)

    def _mean(self, values: Tensor) -> float:
        return mean_over_targets(values, self.counts)

    def linearised(self) -> "Evaluation":
        """Return values whose plain means, and standard errors, are those of the means over all targets that count.

        Notes
        -----
        The mean over targets is a ratio of two sums over examples. Its first-order expansion gives an example with c
        targets, mean value m and c' targets per example on average the value ``mean + c / c' * (m - mean)``: Cochran
        1977, Sampling techniques, section 6.3.
        """
        if self.counts is None:
            return self
        share = self.counts / self.counts.mean()
        losses, errors = (
            (mean := self._mean(values)) + share * (values - mean) for values in (self.losses, self.errors)
        )
        return Evaluation(losses, errors)


def evaluate(
    model: nn.Module,
    inputs: Tensor,
    targets: Tensor,
    criterion: Criterion = cross_entropies,
    *,
    keep_outputs: bool = False,
) -> Evaluation:
    """Evaluate ``model`` in eval mode, and restore its mode.

    Parameters
    ----------
    inputs, targets
        Normalised inputs, shape [n, ...], and targets, shape [n, ...]: class indices, or whatever ``criterion`` takes.
    criterion
        Function from the outputs and targets of a batch to one loss per example.
    keep_outputs
        Whether to keep the model's outputs, for metrics of all examples at once.
    """
    was_training = model.training
    model.eval()
    of_batch = is_of_batch(criterion)
    sizes = batch_sizes(len(inputs), examples_at_a_time(inputs.device))
    losses, errors, kept = [], [], []
    with torch.inference_mode():
        for batch, expected in zip(inputs.split(sizes), targets.split(sizes), strict=True):
            outputs = model(batch)
            if keep_outputs or of_batch:
                # A model that drops dimensions of length 1 gives a single example without its row.
                kept.append((outputs if outputs.shape[:1] == expected.shape[:1] else outputs[None]).cpu())
            if not of_batch:
                loss, error = losses_and_errors(outputs, expected, criterion)
                losses.append(loss)
                errors.append(error)
        if of_batch:
            losses, errors = ([each] for each in losses_and_errors(torch.cat(kept), targets.cpu(), criterion))
    model.train(was_training)
    return Evaluation(
        torch.cat(losses).cpu().double(),
        torch.cat(errors).cpu().double(),
        counts_of(targets, criterion),
        torch.cat(kept) if keep_outputs else None,
    )


def evaluate_joined(
    model: nn.Module,
    parts: Sequence[tuple[Tensor, Tensor]],
    criterion: Criterion = cross_entropies,
    *,
    keep_outputs: bool = False,
) -> list[Evaluation]:
    """Evaluate a model on several parts of data in common batches; the results are those of `evaluate` on each.

    They agree to float tolerance for a model and a criterion of which what they give for an example depends on nothing
    else.

    Parameters
    ----------
    parts
        Inputs and targets of each part, as in `evaluate`.
    criterion, keep_outputs
        As in `evaluate`.
    """
    inputs, targets = (torch.cat(each) if len(each) > 1 else each[0] for each in zip(*parts, strict=True))
    whole, sizes = evaluate(model, inputs, targets, criterion, keep_outputs=keep_outputs), [len(t) for _, t in parts]
    return [
        Evaluation(losses, errors, counts_of(own, criterion), outputs)
        for losses, errors, outputs, (_, own) in zip(
            whole.losses.split(sizes),
            whole.errors.split(sizes),
            [None] * len(parts) if whole.outputs is None else whole.outputs.split(sizes),
            parts,
            strict=True,
        )
    ]


def counts_of(targets: Tensor, criterion: Criterion) -> Tensor | None:
    """Return how many targets of each example a criterion counts, shape [n]; None if all examples weigh the same."""
    return target_counts(targets) if criterion is cross_entropies or isinstance(criterion, Loss) else None


def criterion_of(loss: Loss) -> Criterion:
    """Return the loss of each example by which models are measured: without weights of classes or label smoothing."""
    if loss.of_targets is CROSS_ENTROPY.of_targets:
        return cross_entropies
    return replace(loss, class_weights=None, label_smoothing=0.0)


def is_of_batch(criterion: Criterion) -> bool:
    """Return whether a criterion is known to depend on which examples share a batch."""
    return isinstance(criterion, Loss) and criterion.of_batch


def batch_sizes(n: int, size: int) -> list[int]:
    """Return the sizes of batches of n examples; a last one of a single example is added to the one before.

    A model that drops dimensions of length 1 would take a single example for none.
    """
    sizes = [min(size, n - start) for start in range(0, max(n, 1), size)]
    return [*sizes[:-2], size + 1] if len(sizes) > 1 and sizes[-1] == 1 else sizes


def losses_and_errors(outputs: Tensor, targets: Tensor, criterion: Criterion) -> tuple[Tensor, Tensor]:
    """Return the loss and the error of each example, as in `Evaluation`, for a model's outputs."""
    if isinstance(criterion, Loss) and targets.is_floating_point():
        return criterion(outputs, targets), criterion.errors(outputs, targets)
    is_class = not targets.is_floating_point()
    if is_class and len(targets) == 1 and outputs.ndim == targets.ndim:
        outputs = outputs[None]  # of a model that drops dimensions of length 1
    losses = criterion(outputs, targets)
    return losses, CROSS_ENTROPY.errors(outputs, targets) if is_class else torch.full_like(losses, torch.nan)


def evaluate_cohort(
    model: nn.Module,
    members: Sequence[tuple[Params, Tensor, Tensor]],
    criterion: Criterion = cross_entropies,
    *,
    keep_outputs: bool = False,
) -> list[Evaluation]:
    """Evaluate many models, each on its own examples; the results are those of `evaluate`, to float tolerance.

    Parameters
    ----------
    model
        Model with the architecture; its weights are not used.
    members
        Parameters, all entries of `fedsim.models.params.state_of`; normalised inputs, shape [n, ...]; and targets, such
        as class indices, shape [n] or [n, length].
    criterion, keep_outputs
        As in `evaluate`.

    Raises
    ------
    RuntimeError
        If torch cannot vectorise the model (`fedsim.training.cohort.cohort_problem`).
    """
    was_training = model.training
    model.eval()
    forward = forward_of(model)
    results: dict[int, Evaluation] = {}
    with torch.no_grad():
        for bucket in _buckets([len(targets) for _, _, targets in members]):
            evaluated = _evaluate_bucket(forward, [members[k] for k in bucket], criterion, keep_outputs)
            results |= dict(zip(bucket, evaluated, strict=True))
    model.train(was_training)
    return [results[k] for k in range(len(members))]


def _buckets(sizes: Sequence[int]) -> Iterator[list[int]]:
    """Yield the positions of sizes, the largest first, in buckets whose largest size is at most twice the smallest."""
    bucket: list[int] = []
    for k in sorted(range(len(sizes)), key=lambda k: -sizes[k]):
        if bucket and 2 * sizes[k] < sizes[bucket[0]]:
            yield bucket
            bucket = []
        bucket.append(k)
    if bucket:
        yield bucket


def _evaluate_bucket(
    forward: Callable[[Params, Tensor], Tensor],
    members: Sequence[tuple[Params, Tensor, Tensor]],
    criterion: Criterion,
    keep_outputs: bool,
) -> list[Evaluation]:
    """Evaluate members, the one with the most examples first."""
    inputs, targets = [member[1] for member in members], [member[2] for member in members]
    sizes = torch.tensor([len(each) for each in targets])
    params = stack([member[0] for member in members], targets[0].device)
    losses, errors = torch.zeros(2, len(members), int(sizes[0]), dtype=torch.float64)
    kept: list[list[Tensor]] = [[] for _ in members]
    rows = max(1, examples_at_a_time(inputs[0].device) // len(members))
    for start in range(0, int(sizes[0]), rows):
        active = int((sizes > start).sum())
        batch, expected = (
            # The padding of shorter members does no harm: in evaluation mode, rows are independent.
            pad_sequence([value[start : start + rows] for value in part[:active]], batch_first=True)
            for part in (inputs, targets)
        )
        each = forward({key: value[:active] for key, value in params.items()}, batch)
        outputs = each.flatten(0, 1)
        for k in range(active if keep_outputs else 0):
            kept[k].append(each[k, : int(sizes[k]) - start].cpu())
        flat, width = expected.flatten(0, 1), expected.shape[1]
        measured = losses_and_errors(outputs, flat, criterion)
        for whole, part in zip((losses, errors), measured, strict=True):
            whole[:active, start : start + width] = part.view(active, width).cpu()
    return [
        Evaluation(loss[:n], error[:n], counts_of(own, criterion), torch.cat(outputs) if outputs else None)
        for loss, error, n, own, outputs in zip(losses, errors, sizes.tolist(), targets, kept, strict=True)
    ]


def examples_at_a_time(device: torch.device) -> int:
    """Return how many examples a batch has on a device."""
    return EVALUATION_BATCH if device.type == "cpu" else ACCELERATOR_BATCH
