"""What a client's rule sees: the network, the client before and after training, and a step."""

from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor, nn
from torch.func import functional_call, grad_and_value

from fedsim.models.params import Params, dense
from fedsim.training.losses import CROSS_ENTROPY, Loss, cross_entropy
from fedsim.training.plan import Passes, Phase
from fedsim.training.precision import in_precision
from fedsim.training.settings import LocalSettings, Precision
from fedsim.training.targets import labels_of, real_targets

Sets = Mapping[str, Params]


@dataclass(frozen=True)
class Network:
    """A model's architecture as a function of parameters; the model's own weights are neither read nor changed.

    Parameters
    ----------
    numbers
        Entries of the model besides its parameters, such as the streams of its dropout.
    precision
        What it computes in; outputs and features are of float32 anyway.
    """

    model: nn.Module
    passes: Passes = field(default_factory=Passes)
    numbers: Params = field(default_factory=dict)
    precision: Precision = "float32"

    def logits(self, params: Params, inputs: Tensor) -> Tensor:
        """Return the outputs for inputs, shape [n, ...]; running statistics in ``params`` change in training mode."""

        def forward(inputs: Tensor) -> Tensor:
            logits: Tensor = functional_call(self.model, params | self.numbers, (inputs,))
            return logits

        return in_precision(forward, self.precision)(inputs)

    def logits_and_features(self, params: Params, inputs: Tensor, layer: str) -> tuple[Tensor, Tensor]:
        """Return the outputs, and the input of the module ``layer``, such as the body's features."""
        caught: list[Tensor] = []
        hook = self.model.get_submodule(layer).register_forward_pre_hook(lambda _, values: caught.append(values[0]))
        try:
            logits = self.logits(params, inputs)
        finally:
            hook.remove()
        [features] = caught
        return (
            logits,
            features.float() if features.dtype == torch.bfloat16 and self.precision == "bfloat16" else features,
        )


@dataclass(frozen=True)
class Local:
    """A client as its rule sees it, before training and after.

    Parameters
    ----------
    params
        All entries of the client's model; before training, its own layers and those that it took from the server.
    sets
        Named parameter sets: those that the rule keeps on the client, which do not exist before its first round, and
        those that the server has sent.
    own
        The client's model before it took anything from the server. Layers that it does not keep, and all layers before
        its first round, have their initial values.
    inputs, targets
        The client's training examples, shape [n, ...] and [n] or [n, length]; targets of -100 do not count.
    read_validation
        Function that returns `validation`; it is called by rules that want them only, as reading them takes a while.
    shared
        Names of the layers that the client shares in this round.
    rng
        Stream of the rule alone; training draws from another one.
    network
        The architecture, for evaluating and differentiating the model, in evaluation mode.
    training_loss
        The loss of the run, such as cross-entropy.
    """

    server_round: int
    client: int
    params: Params
    sets: Sets
    own: Params
    inputs: Tensor
    targets: Tensor
    settings: LocalSettings
    rng: np.random.Generator
    network: Network
    read_validation: Callable[[], tuple[Tensor, Tensor]] = lambda: (torch.empty(0), torch.empty(0))
    shared: Collection[str] = ()
    training_loss: Loss = CROSS_ENTROPY

    @property
    def validation(self) -> tuple[Tensor, Tensor]:
        """The client's validation examples, inputs and targets, of which there may be none; none is trained on."""
        return self.read_validation()

    @property
    def labels(self) -> Tensor:
        """The classes of all targets that count, shape [targets]."""
        return labels_of(self.targets)

    def logits(self, params: Params, inputs: Tensor) -> Tensor:
        """Return the model's outputs, and count the examples."""
        self.network.passes.forward += len(inputs)
        return self.network.logits(params, inputs)

    def features(self, params: Params, inputs: Tensor, layer: str) -> Tensor:
        """Return the input of ``layer``, shape [n, ...], and count the examples."""
        self.network.passes.forward += len(inputs)
        return self.network.logits_and_features(params, inputs, layer)[1]

    def loss_of(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Return the mean loss of the run over the targets that count, such as the cross-entropy."""
        return self.training_loss.mean(outputs, targets, real_targets(targets))

    def mean_loss(self, params: Params) -> Tensor:
        """Return the loss of the run over all training targets that count, float64, computed a mini-batch at a time."""
        total = weights = torch.zeros((), dtype=torch.float64, device=self.targets.device)
        for chosen in self.batches():
            outputs, targets = self.logits(params, self.inputs[chosen]), self.targets[chosen]
            weight = self.training_loss.weight_of(targets, real_targets(targets))
            total = total + weight * self.loss_of(outputs, targets).double()
            weights = weights + weight
        return total / weights.clamp(min=torch.finfo(torch.float64).tiny)

    def gradient(self, loss: Callable[[Params], Tensor], params: Params, examples: int) -> tuple[Params, Tensor]:
        """Return the gradient of a loss with respect to ``params``, and its value; count the backward passes."""
        self.network.passes.backward += examples
        return _gradient(loss, params)

    def batches(self, order: np.ndarray | None = None) -> tuple[Tensor, ...]:
        """Return indices of training examples, split into mini-batches: those of ``order``, or all as they come."""
        indices = torch.arange(len(self.targets)) if order is None else torch.from_numpy(order)
        return indices.to(self.targets.device).split(self.settings.batch_size)

    def loss_gradient(self, model: Params, keys: Iterable[str], chosen: Tensor) -> tuple[Params, Tensor]:
        """Return the gradient of the run's loss on a mini-batch, and the loss; count the passes.

        Parameters
        ----------
        model
            All entries of the model.
        keys
            Entries with respect to which the gradient is taken.
        chosen
            Indices of the training examples.
        """
        inputs, targets = self.inputs[chosen], self.targets[chosen]
        return self.gradient(
            lambda values: self.loss_of(self.logits(model | values, inputs), targets),
            {key: model[key] for key in keys},
            len(chosen),
        )


@dataclass(frozen=True)
class Step:
    """One step of a client's training, as a rule's hooks `loss` and `gradient` see it.

    In a cohort these hooks run under `torch.vmap`, so they must not read values of tensors; their code is the same.

    Parameters
    ----------
    params
        All entries of what the phase trains: the model, or the set that it names.
    sets
        The rule's other sets. Entries of those in the rule's `trained` are trained too.
    drawn
        Random numbers that the hook `draw` has drawn for this step.
    inputs, targets
        The mini-batch, shape [n, ...] and [n] or [n, length].
    real
        Which targets count, with the shape of the targets; None where all do.
    number
        Number of the step in its phase, from 0.
    lr
        Step size of the step: a number, or a tensor where members of a cohort have different ones.
    """

    params: Params
    sets: Sets
    drawn: Params
    inputs: Tensor
    targets: Tensor
    real: Tensor | None
    number: int
    phase: Phase
    lr: float | Tensor
    network: Network
    training_loss: Loss = CROSS_ENTROPY

    def logits(self, params: Params) -> Tensor:
        """Return the outputs for the mini-batch, and count a forward and a backward pass."""
        self._count()
        return self.network.logits(params, self.inputs)

    def logits_and_features(self, params: Params, layer: str) -> tuple[Tensor, Tensor]:
        """Return the outputs for the mini-batch and the input of ``layer``, and count a forward and a backward pass."""
        self._count()
        return self.network.logits_and_features(params, self.inputs, layer)

    def loss_of(self, outputs: Tensor) -> Tensor:
        """Return the mean loss of the run over the targets of the mini-batch that count, such as the cross-entropy."""
        return self.training_loss.mean(outputs, self.targets, self.real)

    def cross_entropy(self, logits: Tensor) -> Tensor:
        """Return the mean cross-entropy in nats over the targets of the mini-batch that count.

        Raises
        ------
        ValueError
            If the run has another loss.
        """
        if self.training_loss.of_targets is not cross_entropy:
            raise ValueError(
                f"step.cross_entropy is not the loss of this run, which is {self.training_loss.name!r} for the task "
                f"{self.training_loss.task!r}; use step.loss_of(outputs)"
            )
        return self.loss_of(logits)

    def mean(self, values: Tensor) -> Tensor:
        """Return the mean of ``values``, one for each target or each example, over those that count; 0 if none does.

        An example counts where any of its targets does.
        """
        real = self.real
        if real is not None and values.ndim == 1:
            real = real.reshape(len(real), -1).any(1)
        counted = torch.ones_like(values) if real is None else real.to(values.dtype)
        return (values * counted).sum() / counted.sum().clamp(min=1)

    def gradient(self, loss: Callable[[Params], Tensor], params: Params) -> tuple[Params, Tensor]:
        """Return the gradient of a loss with respect to ``params``, and its value."""
        return _gradient(loss, params)

    def _count(self) -> None:
        # In passes of the mini-batch, which has its own number of examples for each client.
        self.network.passes.forward += 1
        self.network.passes.backward += 1


def _gradient(loss: Callable[[Params], Tensor], params: Params) -> tuple[Params, Tensor]:
    gradient, value = grad_and_value(loss)(params)
    return dense(gradient), value
