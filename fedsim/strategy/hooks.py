"""What a method decides on the server: hooks of a round and its updates, without Flower."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Annotated, Any, ClassVar, Literal

import torch
from annotated_types import Gt, Le
from pydantic import BaseModel
from torch import Tensor, nn

from fedsim.errors import RunError
from fedsim.models.averaging import weighted_mean
from fedsim.models.layers import LayerGroup, Layers
from fedsim.models.params import Params, combine, flatten, unflatten
from fedsim.strategy.exchange import Exchange
from fedsim.strategy.measurable import ClientBarrier, Measurable
from fedsim.strategy.memory import Memory, check_memory
from fedsim.strategy.options import Count, Decay, Declared, Setting, check_method, check_options, declared, schema
from fedsim.strategy.participants import draw_unseen, drawn_participants
from fedsim.strategy.updates import ClientUpdate, Received, check_average
from fedsim.training import ClientRule, LocalPlan, Sets
from fedsim.training.losses import CROSS_ENTROPY
from fedsim.training.overrides import check_overrides

Buffers = Literal["shared", "personal", "recompute"]
Precision = Literal["float64", "float32"]
UploadPrecision = Literal["own", "bfloat16"]
HOOKS = (
    *("prepare", "check_rounds", "shared", "shared_by", "kept", "moved", "local_plan", "fine_tuning", "aggregate"),
    *("for_client", "sets_for", "planned_layers", "planned_sets", "measurable", "measured_clusters", "take_barriers"),
    *("state", "load_state"),
)


class Hooks:
    """What a method decides on the server; `fedsim.strategy.Strategy` adds Flower's messages to it.

    A method's options are declared in its class: ``mu: NonNegative = Option(0.01, "Weight of the proximal term.")``.
    The class keyword ``shared="all"`` gives it the option ``shared``, a layer group, with that default.

    Parameters
    ----------
    model
        A model of the architecture that is trained; only its layers are read.
    inputs
        Inputs that the server holds, shape [n, ...], as the model takes them: for methods that trace the model or
        measure it. The others need none.
    **options
        The options and settings that the class declares.

    Attributes
    ----------
    client_rule
        Class of what clients do beyond the plan; they build it themselves, from the method's options.
    group
        The layers that are shared unless `shared` says otherwise: what the option ``shared`` names, or all.
    parameters
        State-dict keys of the model's parameters, without buffers.
    global_model
        The server's model, all entries of the state dict.
    memory
        What the method remembers between rounds, as a tree of tensors. It is in every checkpoint, and before
        `aggregate` it is on the device of the updates, as the global model is.
    server_data
        Training examples that the server holds, normalised inputs and targets, where the run gives it some.
    training_loss
        The loss of the run, such as cross-entropy.
    exchange
        When each layer was averaged and each client took part: what a client takes follows from it.
    clients
        Number of clients, known from the first round on.
    partial
        Whether a client may leave out some of the layers that it was asked for, and send more sets or fewer than
        others; `aggregate` must then be the strategy's own.
    needs_server_data
        Whether the method learns on examples of the server: a run in which it holds none is refused.
    holds_bases
        Whether the server changes the weights below adapters, which are frozen otherwise.
    unplanned
        What a dry run cannot know of the bytes, since it follows from training; empty if it knows all.

    Raises
    ------
    TypeError
        If an option is unknown.
    ValueError
        If an option is out of range, or a layer group cannot be read.
    """

    client_rule: ClassVar[type[ClientRule]] = ClientRule
    partial: ClassVar[bool] = False
    needs_server_data: ClassVar[bool] = False
    holds_bases: ClassVar[bool] = False
    unplanned: str = ""

    participation: Annotated[float, Gt(0), Le(1)] = Setting(
        1.0, "Share of the clients that train in a round, of those that are not unseen."
    )
    seed: int = Setting(0, "Seed of the participants of all rounds.")
    buffers: Buffers = Setting(
        "shared",
        "Running statistics: averaged with their layer (shared), kept by the client (personal), or computed from the "
        "client's training data again (recompute).",
    )
    min_available_nodes: Count = Setting(1, "Nodes to wait for before a round: Flower's appear one after the other.")
    send_initial: bool = Setting(
        True,
        "Whether a client's first message holds every layer. A client that can build the initial model itself, as "
        "fedsim's do from the seed, needs only those that were averaged since.",
    )
    precision: Precision = Setting("float64", "Precision of the sums in the average.")
    upload_precision: UploadPrecision = Setting(
        "own", "Precision in which layers of float32 travel to the server: their own, or rounded to bfloat16."
    )
    max_update_norm: Annotated[float, Gt(0)] | None = Setting(
        None, "Largest L2 distance of an update from where its client began; larger ones are left out."
    )
    evaluate_clients: Count | None = Setting(
        None, "Number of clients that are evaluated, the same in each round, and as many unseen ones at most; else all."
    )
    unseen: Decay = Setting(0.0, "Share of the clients that never train, at least one if it is not 0.")

    def __init_subclass__(cls, shared: str | None = None, **keywords: Any) -> None:
        super().__init_subclass__(**keywords)
        if shared is not None:
            text = "Layer group that is averaged, in the layer language."
            cls.group = Declared(shared, text, name="shared")  # type: ignore[assignment]
        check_method(cls, cls.client_rule)
        check_overrides(cls, Hooks, HOOKS)

    group: LayerGroup

    def __init__(self, model: nn.Module, *, inputs: Tensor | None = None, **options: Any) -> None:
        values = check_options(type(self), options)
        self.layers = Layers.of(model, inputs)
        for name, (attribute, _, _) in declared(type(self)).items():
            setattr(self, attribute, values[name])
        self.group = self.layers.group(values.get("shared", "all"))
        if frozen := set(self.group) & set(self.layers.frozen):
            raise ValueError(f"shared = {values['shared']!r} names {min(frozen)}, which is frozen and never travels")
        self.parameters = self.layers.keys(self.layers.names, buffers=False)
        self.model, self.inputs = model, inputs
        self.server_data: tuple[Tensor, Tensor] | None = None
        self.training_loss = CROSS_ENTROPY
        self.global_model: Params = {}
        self.memory: Memory = {}
        self.clients, self.exchange = 0, Exchange(self.layers.names)
        self._upload: tuple[str, ...] = ()
        self._keep: tuple[str, ...] = ()
        self.prepare()

    # Hooks: functions of the round, the updates and the memory.

    def prepare(self) -> None:
        """Check options that depend on each other or the model, and build what other hooks need."""

    def shared(self, server_round: int) -> LayerGroup:
        """Return the layers that clients send and the server averages in this round; also asked before the run."""
        return self.group

    def aggregate(self, server_round: int, updates: Sequence[ClientUpdate]) -> Params:
        """Return the new value of the shared layers; by default the mean weighted by examples.

        Parameters
        ----------
        updates
            At least one, sorted by client, all with the same keys and shapes and finite.
        """
        return self.average(updates)

    def moved(self, server_round: int) -> LayerGroup:
        """Return the layers that `aggregate` changes though no client sends them: by default none."""
        return LayerGroup("none", ())

    def kept(self, server_round: int) -> LayerGroup:
        """Return the layers whose value a client keeps for itself: by default those that only it changes.

        It takes the others from the server before it needs them again. A strategy whose clients need their own value of
        a shared layer, or whose `aggregate` leaves one out, keeps that layer too.
        """
        others = {*self.shared(server_round), *self.moved(server_round)}
        return LayerGroup("kept", tuple(name for name in self.layers.names if name not in others))

    def shared_by(self, server_round: int, client: int) -> LayerGroup:
        """Return the layers of `shared` that this client sends: all, if `aggregate` is not overridden."""
        return self.shared(server_round)

    def local_plan(self, server_round: int) -> LocalPlan:
        """Return what clients do in this round; by default they train all layers."""
        return LocalPlan()

    def check_rounds(self, rounds: int) -> None:
        """Raise `ValueError` if the method is not itself in a run of that many rounds; a schedule may keep these."""

    def fine_tuning(self) -> str:
        """Return the layer group that a client fine-tunes once training is over: by default all layers."""
        return "all"

    def for_client(self, server_round: int, client: int) -> Params:
        """Return what a client takes from the server when it next takes part, at the earliest in ``server_round``.

        By default the layers that were averaged since it last took part, or ever if it never has.
        """
        return {key: self.global_model[key] for key in self.keys(self.exchange.taken_by(client))}

    def sets_for(self, server_round: int, client: int) -> Sets:
        """Return the named parameter sets that the client's rule gets from the server besides layers of the model.

        They travel in each round in which the client takes part, and count as traffic.
        """
        return {}

    def planned_layers(self, server_round: int, client: int) -> Sequence[str]:
        """Return the layers that `for_client` would give a client, without the memory of a run: for a dry run."""
        return self.exchange.taken_by(client)

    def planned_sets(self, server_round: int, client: int) -> Mapping[str, tuple[int, int]]:
        """Return the bytes of each parameter set that a client sends in this round, and gets, by name: for a dry run.

        `exchange` and `drawn` tell who takes part when; the global model is the initial one. By default there are none.
        """
        return {}

    def measurable(self, server_round: int) -> Measurable | None:
        """Return which layers' barriers the strategy wants before it aggregates this round: by default none."""
        return None

    def measured_clusters(self, server_round: int, updates: Sequence[ClientUpdate]) -> Sequence[Sequence[int]]:
        """Return the clients of each average whose layers its members are measured with: by default all in one."""
        return [[update.client for update in updates]]

    def take_barriers(self, server_round: int, barriers: Mapping[str, Sequence[ClientBarrier]]) -> None:
        """Take the barriers that `measurable` asked for.

        Parameters
        ----------
        barriers
            By layer, or by the name of layers that are replaced together: for each client with examples to measure on,
            and each cluster that it is in, by how many nats its loss rises if the layers come from the average of the
            cluster's models. `fedsim.strategy.bounds_of` makes a mean and its bounds of them.
        """

    def state(self) -> Params:
        """Return what the strategy remembers between rounds, as named tensors for a checkpoint: its `memory`."""
        check_memory(self.memory, f"{type(self).__name__}.memory")
        return flatten(self.memory)

    def load_state(self, state: Params) -> None:
        """Take the memory that `state` returned."""
        self.memory = unflatten(state)

    # What hooks are made of.

    def average(self, updates: Sequence[ClientUpdate], weights: Sequence[float] | None = None, of: str = "") -> Params:
        """Return the mean of what clients have sent.

        Parameters
        ----------
        weights
            Weight of each client; its number of examples if not given.
        of
            Name of a parameter set; the shared layers if not given.
        """
        members = [update.sets[of] if of else update.shared for update in updates]
        weights = [update.num_examples for update in updates] if weights is None else weights
        return weighted_mean(members, weights, self.dtype)

    def mixture(self, members: Mapping[str, Params], weights: Mapping[str, float]) -> Params:
        """Return a client's own mean of what others have sent, by client as text; those of weight 0 are left out."""
        chosen = [client for client in sorted(weights, key=int) if weights[client] > 0]
        return weighted_mean([members[client] for client in chosen], [weights[client] for client in chosen], self.dtype)

    def toward(self, mean: Params, share: float) -> Params:
        """Return parameters that go a share of the way from the global model to ``mean``, and buffers of ``mean``."""
        return {
            key: torch.lerp(self.global_model[key], value, share) if key in self.parameters else value
            for key, value in mean.items()
        }

    def drawn(self, server_round: int) -> Sequence[int]:
        """Return the clients that are to train in a round, in ascending order."""
        return drawn_participants(self.seed, server_round, self.clients, self.participation, self.unseen)

    @property
    def clients_that_train(self) -> list[int]:
        """All clients that are not unseen, as many as there are known to be."""
        unseen = set(draw_unseen(self.seed, self.clients, self.unseen))
        return [client for client in range(self.clients) if client not in unseen]

    def keys(self, layers: Iterable[str]) -> tuple[str, ...]:
        """Return the state-dict keys of layers that travel: parameters, and buffers where these are shared."""
        return self.layers.keys(layers, buffers=self.buffers == "shared")

    @property
    def dtype(self) -> torch.dtype:
        """Precision of the sums in the average."""
        return torch.float64 if self.precision == "float64" else torch.float32

    @classmethod
    def option_schema(cls) -> type[BaseModel]:
        """Return the record that checks the options of ``[strategy]``."""
        return schema(cls)

    @classmethod
    def make_rule(cls, model: nn.Module, inputs: Tensor | None = None, **options: Any) -> ClientRule:
        """Build what clients do beyond the plan, as a client does: from the method's options alone."""
        known = {name: value for name, value in options.items() if name in declared(cls)}
        return cls.client_rule(model, inputs, **options | check_options(cls, known))

    # A round.

    def step(self, server_round: int, received: Received) -> None:
        """Average valid updates into the global model, and remember who took part and what was averaged.

        Raises
        ------
        RunError
            If `aggregate` returns something that is not a part of the model, or leaves out what clients do not keep.
        """
        if not received.updates:
            return
        where = f"{type(self).__name__}.aggregate"
        if received.average is None:
            self._join_(received.updates)
            averaged: object = self.aggregate(server_round, received.updates)
        else:
            averaged = received.average
        new = check_average(averaged, self.global_model, where)
        if lost := set(self._upload) - set(self._keep) - new.keys():
            raise RunError(
                f"{where} returns no value for {min(lost)!r}, which clients have shared and do not keep; return one, "
                f"or let {type(self).__name__}.kept name its layer"
            )
        self.set_global_model(combine(self.global_model, new))
        self.exchange.note(server_round, map(self.layers.of_key, new), received.trained)

    def set_global_model(self, model: Params) -> None:
        """Make ``model`` the global model, without frozen tensors, and with a tied one only under its first name."""
        # A second name would keep its old value when the first is averaged, and a client would load the old one.
        left_out = self.layers.aliases.keys() | self.layers.frozen_keys
        self.global_model = {key: value for key, value in model.items() if key not in left_out}

    def _join_(self, updates: Sequence[ClientUpdate]) -> None:
        """Move what the server holds to where the updates are: after a restart it comes from the disk."""
        parts = [part for update in updates for part in (update.shared, *update.sets.values())]
        device = next((value.device for part in parts for value in part.values()), None)
        if device is not None:
            self.global_model = {key: value.to(device) for key, value in self.global_model.items()}
            check_memory(self.memory, f"{type(self).__name__}.memory")
            self.memory = unflatten({path: value.to(device) for path, value in flatten(self.memory).items()})
