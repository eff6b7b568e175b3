"""The spawning method: one model, trained for a while, whose copies then continue apart, perhaps perturbed at first."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Literal

import torch
from torch import Tensor

from fedsim.analysis.directions.random_directions import entries_of, gaussian, vector_of
from fedsim.models.asymmetry import fixed_entries
from fedsim.models.layers import Layer, LayerGroup
from fedsim.models.params import Params
from fedsim.strategy import (
    ClientRule,
    ClientUpdate,
    CountOrZero,
    Finished,
    Local,
    LocalPlan,
    NonNegative,
    Option,
    Phase,
    Strategy,
)

SPAWNED = "spawned"


class Perturbing(ClientRule):
    """Perturbs all clients' copies but the first one's, once, before they train on."""

    spawn_round: int
    noise: float
    noise_kind: str
    noise_layers: str

    def start(self, local: Local) -> Local:
        begins = local.server_round > self.spawn_round and SPAWNED not in local.sets
        if not begins or local.client == 0 or not self.noise:
            return local
        layers = [self.layers[name] for name in self.layers.group(self.noise_layers)]
        made = self._gaussian if self.noise_kind == "gaussian" else self._gradient
        return replace(local, params=local.params | made(local, layers))

    def finish(self, local: Local, started: Local) -> Finished:
        # Evaluation begins like training, and must not perturb the model again.
        kept = {SPAWNED: {"round": torch.tensor(local.server_round)}} if local.server_round > self.spawn_round else {}
        return Finished(local.params, kept=kept)

    def _gaussian(self, local: Local, layers: Sequence[Layer]) -> Params:
        """Return layers with noise that has a share of the length of each."""
        assert self.model is not None
        seed, fixed = int(local.rng.integers(2**31)), fixed_entries(self.model)
        noise = [gaussian(each, local.params, seed, SPAWNED, 0, fixed) for each in layers]
        return self._moved(local, layers, noise, apart=True)

    def _gradient(self, local: Local, layers: Sequence[Layer]) -> Params:
        """Return layers after a step down the gradient of a mini-batch, with a share of the length of all together."""
        [chosen] = local.batches(local.rng.permutation(len(local.targets))[: local.settings.batch_size])
        keys = [key for each in layers for key in each.parameters]
        slopes = local.loss_gradient(local.params, keys, chosen)[0]
        return self._moved(local, layers, [-vector_of(slopes, each) for each in layers], apart=False)

    def _moved(self, local: Local, layers: Sequence[Layer], noise: Sequence[Tensor], *, apart: bool) -> Params:
        origins, moved = [vector_of(local.params, each) for each in layers], dict[str, Tensor]()
        whole = scale_of(torch.cat(origins), torch.cat(list(noise)))
        for layer, origin, direction in zip(layers, origins, noise, strict=True):
            scale = scale_of(origin, direction) if apart else whole
            moved |= entries_of(origin + self.noise * scale * direction, layer, local.params)
        return moved


def scale_of(origin: Tensor, direction: Tensor) -> float:
    """Return the factor that gives a direction the length of the origin; 0 for one without length, as of no slope."""
    length = float(direction.norm())
    return float(origin.norm()) / length if length else 0.0


class Spawning(Strategy, shared="all"):
    """Train the first client's model for a while, give it to all, and let each continue alone.

    References
    ----------
    Fort et al. 2020, Deep learning versus kernel learning, arXiv 2010.15110; Zhou et al. 2023, Going beyond linear
    mode connectivity, arXiv 2307.08286, section 3; The butterfly effect, ICML 2025 (code gsaltintas/lmc), for noise.

    Notes
    -----
    Copies whose clients have equal data and ``local.order = "same"`` differ by their noise alone. Gaussian noise has
    ``noise`` times the length of the parameters in each layer, a batch's gradient in all of these layers together.
    """

    client_rule = Perturbing
    spawn_round: CountOrZero = Option(1, "Round after which all take the first one's model, and never share again.")
    steps: CountOrZero | None = Option(
        None, "Steps of each round before (default: the run's epochs); 0 leaves the model."
    )
    noise: NonNegative = Option(0.0, "Length of the noise that copies but the first begin with, over the parameters'.")
    noise_kind: Literal["gaussian", "gradient"] = Option("gaussian", "Noise: normal, or down a mini-batch's gradient.")
    noise_layers: str = Option("all", "Layers that get noise.")

    def prepare(self) -> None:
        self.layers.group(self.noise_layers)
        if self.noise and (self.participation < 1 or self.unseen):
            raise ValueError(
                f"noise = {self.noise:g} reaches copies when they are first trained, so that those of absent clients "
                "would be evaluated with other noise; use participation = 1 and unseen = 0"
            )

    def shared(self, server_round: int) -> LayerGroup:
        """Share all layers until the models are spawned."""
        return self.layers.group("all" if server_round <= self.spawn_round else "none")

    def local_plan(self, server_round: int) -> LocalPlan:
        """Take the steps of the common training, of which there is at least one."""
        if self.steps is None or server_round > self.spawn_round:
            return LocalPlan()
        return LocalPlan((Phase(steps=max(1, self.steps)),))

    def aggregate(self, server_round: int, updates: Sequence[ClientUpdate]) -> Params:
        """Take the first client's model as it is; that from before its training if there are to be no steps."""
        shared = updates[0].shared
        return {key: self.global_model[key] for key in shared} if self.steps == 0 else dict(shared)
