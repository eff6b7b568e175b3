"""The client's side of a method beyond phases of plain training: pure hooks over named parameters."""

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from torch import Tensor, nn

from fedsim.models.layers import Layers
from fedsim.models.params import Params
from fedsim.training.context import Local, Sets, Step
from fedsim.training.losses import CROSS_ENTROPY, Loss
from fedsim.training.overrides import check_overrides
from fedsim.training.plan import Phase

HOOKS = ("prepare", "start", "draw", "loss", "gradient", "finish", "network", "personalised")


@dataclass(frozen=True)
class Finished:
    """What a client keeps and sends after training.

    Parameters
    ----------
    params
        All entries of the client's model; the layers that it keeps are taken from it, and those that it shares.
    upload
        What it shares instead, by key. Layers may be missing where the strategy is ``partial``.
    kept
        Sets that stay with the client until it next takes part.
    sent
        Sets that travel to the server, and count as traffic.
    metrics
        Numbers for the server; they are no measurements of the run.
    measured
        The model whose barriers the strategy gets in the place of ``params``, all entries: the simulator's instrument,
        not counted as traffic.
    unsent
        By key, which entries of ``upload`` are not sent, bool: they are zeros there, and no part of the update's size.
    """

    params: Params
    upload: Params | None = None
    kept: Sets = field(default_factory=dict)
    sent: Sets = field(default_factory=dict)
    metrics: Mapping[str, float] = field(default_factory=dict)
    measured: Params | None = None
    unsent: Params = field(default_factory=dict)


class ClientRule:
    """What a client does beyond the phases of its plan; by default nothing.

    A rule is stateless: one object serves all clients, in threads. What it remembers are named parameter sets, dicts of
    tensors like a model: personal models, masks, control variates, anchors. Names of sets are words with underscores,
    except those that messages already use.

    A rule reads options of its strategy as attributes: those that it annotates, such as ``mu: float``.

    Parameters
    ----------
    model
        A model of the architecture that is trained; only its layers are read.
    inputs
        Inputs that the strategy holds, for rules that trace the model.
    **options
        All options of the strategy.

    Attributes
    ----------
    layers
        The model's layers.
    parameters
        State-dict keys of the model's parameters, without buffers.
    trained
        Names of the sets whose floating-point entries follow the gradient of `loss` together with the model.
    plain_sgd
        Whether the method is defined for plain SGD only: other settings of where a step goes are then refused.
    linear_steps
        Whether the method is defined only where a client's move is a sum of gradients times a step size, as with SGD,
        with or without momentum: other optimisers, clipping and step sizes by layer are then refused.
    needs_validation
        Whether the method decides by the clients' validation examples: a run in which no client has any is refused.
    cross_entropy_only
        Whether the method is defined for cross-entropy over classes only: other tasks and losses are then refused.
    """

    trained: Sequence[str] = ()
    plain_sgd: bool = False
    linear_steps: bool = False
    needs_validation: bool = False
    cross_entropy_only: bool = False

    def __init_subclass__(cls, **keywords: Any) -> None:
        super().__init_subclass__(**keywords)
        check_overrides(cls, ClientRule, HOOKS)

    def __init__(self, model: nn.Module | None = None, inputs: Tensor | None = None, **options: Any) -> None:
        self.layers = Layers() if model is None else Layers.of(model, inputs)
        self.parameters = self.layers.keys(self.layers.names, buffers=False)
        self.model, self.inputs = model, inputs
        for name in self.reads() & options.keys():
            setattr(self, name, options[name])
        self.prepare()

    @classmethod
    def reads(cls) -> set[str]:
        """Return the names of the options that the rule reads: those that its class annotates."""
        rules = [base for base in cls.__mro__ if issubclass(base, ClientRule) and base is not ClientRule]
        return {name for base in rules for name in inspect.get_annotations(base)}

    def prepare(self) -> None:
        """Build what the other hooks need, once the options are set."""

    def start(self, local: Local) -> Local:
        """Return the client as it begins to train, perhaps with other parameters and more sets.

        It is also called before the client's personalised model is evaluated; nothing is kept then.
        """
        return local

    def draw(self, rng: np.random.Generator, sets: Sets) -> Params:
        """Return the random numbers of a step, with the same keys and shapes in each step."""
        return {}

    def loss(self, step: Step) -> Tensor:
        """Return the loss that the step descends: by default the run's own, such as the mean cross-entropy."""
        return step.loss_of(step.logits(step.params))

    def gradient(self, step: Step, gradients: Params) -> Params:
        """Return the gradients for the step.

        Parameters
        ----------
        gradients
            Gradients of the trained parameters by key, those of a set by ``set/key``. The proximal term is added later.
        """
        return gradients

    def finish(self, local: Local, started: Local) -> Finished:
        """Return what the client keeps and sends.

        Parameters
        ----------
        local
            The client after training.
        started
            The client as `start` returned it.
        """
        return Finished(local.params)

    def network(self, model: nn.Module) -> nn.Module:
        """Return the module that evaluates a client's own model: by default ``model``, a copy that may be changed.

        A method with modules beyond the model, such as a second head, adds them here, with the weights to come from
        `personalised`.
        """
        return model

    def personalised(self, local: Local) -> Params:
        """Return all entries of `network` for evaluation, for a client as `start` returned it."""
        return local.params

    @property
    def has_network(self) -> bool:
        """Whether a client's own model has more than the run's."""
        return type(self).network is not ClientRule.network

    @property
    def sees_client(self) -> bool:
        """Whether a hook is given the client, whose models it must be free to change."""
        return self.personalises or type(self).finish is not ClientRule.finish

    @property
    def personalises(self) -> bool:
        """Whether the personalised model is more than the client's own layers and those that it took."""
        return type(self).start is not ClientRule.start or type(self).personalised is not ClientRule.personalised


@dataclass(frozen=True)
class Ruled:
    """A client's rule, its named parameter sets, the stream from which it draws in each step, and the run's loss.

    Parameters
    ----------
    takes_padding
        Whether the hooks leave out what pads a mini-batch in a cohort, as ``step.mean`` does; otherwise they see none.
    """

    rule: ClientRule = field(default_factory=ClientRule)
    sets: Sets = field(default_factory=dict)
    rng: np.random.Generator = field(default_factory=lambda: np.random.default_rng(0))
    training_loss: Loss = CROSS_ENTROPY
    takes_padding: bool = True

    @property
    def has_loss(self) -> bool:
        """Whether the rule descends a loss other than the run's."""
        return type(self.rule).loss is not ClientRule.loss

    @property
    def has_gradient(self) -> bool:
        """Whether the rule changes gradients."""
        return type(self.rule).gradient is not ClientRule.gradient


@dataclass(frozen=True)
class Position:
    """The current phase of training, the step in it, and the step size of each member."""

    phase: Phase
    number: int
    lr_of: Callable[[int], float]
