"""Each layer has its own step size, its own share of what is sent, and the head its own start."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from fedsim.models.averaging import mean_of_sent
from fedsim.models.layers import LayerGroup
from fedsim.models.params import Params, lerp
from fedsim.strategy import (
    ClientRule,
    ClientUpdate,
    CountOrZero,
    Finished,
    Local,
    NonNegative,
    Option,
    Positive,
    Share,
    Step,
    Strategy,
)
from fedsim.training.targets import labels_of, real_targets
from strategies.parts import two_parts

LEAST_LEFT_OUT = 0.1
MASK, RATES, ACCURACY = "sent_mask", "rates", "accuracy"


class FlayerRule(ClientRule):
    """Begins with a mix of both heads, scales gradients by the set ``rates``, and sends what has moved most."""

    trained = (RATES,)
    plain_sgd = True
    needs_validation = True
    cross_entropy_only = True
    head: str
    own_head: bool
    head_epochs: int
    head_scale: float
    depth: float
    most_left_out: float

    def prepare(self) -> None:
        head = set(two_parts(self.layers, "head", self.head)[0])
        layers = [layer for layer in self.layers if layer.parameters]
        self._depth_of = {
            layer.name: None if layer.name in head else place / max(len(layers) - 1, 1)
            for place, layer in enumerate(layers)
        }
        self._keys = {layer.name: layer.parameters for layer in layers}
        self._head = [key for layer in layers if layer.name in head for key in layer.parameters]

    def start(self, local: Local) -> Local:
        params = dict(local.params)
        if self.own_head:
            # Of a client that has not trained, both are the global one.
            accuracy = float(local.sets[ACCURACY]["value"]) if ACCURACY in local.sets else 0.0
            own, received = ({key: model[key] for key in self._head} for model in (local.own, params))
            params |= lerp(received, own, accuracy)
        for _ in range(self.head_epochs):
            for chosen in local.batches(local.rng.permutation(len(local.targets))):
                slopes, _ = local.loss_gradient(params, self._head, chosen)
                lr = local.settings.lr * self.head_scale
                params |= {key: params[key] - lr * slope for key, slope in slopes.items()}
        one = params[self._head[0]].new_ones(())
        rates = {RATES: dict.fromkeys(self._keys, one)}
        return replace(local, params=params, sets={**rates, ACCURACY: {"value": self._accuracy(local, params)}})

    def gradient(self, step: Step, gradients: Params) -> Params:
        rates, found = step.sets[RATES], {}
        if step.number == 0:
            rates = {name: self._rate(name, gradients) for name in self._keys}
            # SGD brings the set there in this step.
            found = {f"{RATES}/{name}": (step.sets[RATES][name] - rate) / step.lr for name, rate in rates.items()}
        for name, keys in self._keys.items():
            found |= {key: gradients[key] * rates[name] for key in keys if key in gradients}
        return found

    def finish(self, local: Local, started: Local) -> Finished:
        kept = {ACCURACY: started.sets[ACCURACY]}
        masks: Params = {}
        for key, left_out in _left_out(local.params, self.parameters, self._head, self.most_left_out).items():
            masks[key] = _most_moved((local.params[key] - started.params[key]).abs(), left_out)
        upload = local.params | {key: local.params[key] * mask for key, mask in masks.items()}
        unsent = {key: ~mask for key, mask in masks.items()}
        return Finished(local.params, upload, kept=kept, sent={MASK: masks} if masks else {}, unsent=unsent)

    def _accuracy(self, local: Local, params: Params) -> Tensor:
        inputs, targets = local.validation
        if not self.own_head or not len(labels_of(targets)):
            return torch.zeros((), dtype=torch.float64)
        with torch.no_grad():
            right = local.logits(params, inputs).argmax(1) == targets
        real = real_targets(targets)
        return (right if real is None else right[real]).double().mean().cpu()

    def _rate(self, layer: str, gradients: Params) -> Tensor:
        """Return the factor of a layer's step size, the mean of those of its tensors."""
        depth, found = self._depth_of[layer], [gradients[key] for key in self._keys[layer] if key in gradients]
        one = next(iter(gradients.values())).new_ones(())
        if depth is None or not found:
            return one * self.head_scale
        norms = torch.stack([value.norm() for value in found]).clamp(min=1e-8)
        return 1 + self.depth * depth * (1 + 1 / norms).log().mean()


class Flayer(Strategy):
    """Let step sizes grow with depth, mix the head by the client's accuracy, and send what moved most: FLAYER.

    References
    ----------
    Chen et al. 2025, Optimizing personalized federated learning through adaptive layer-wise learning, IJCAI,
    arXiv 2412.07062.

    Notes
    -----
    A round begins with the global body and the head a own + (1 - a) global, trained for an epoch; the model is then
    evaluated, and its accuracy is the a of the next round. **The authors take it on the client's test data; here it is
    of validation data.** Layer l of L trains with the step size lr (1 + l / (L - 1) log(1 + 1 / ||g||)), for the
    gradient g of the first mini-batch, in the mean over its tensors, the head with lr / 5. Of tensor i of N the share
    1 - i / N of entries that moved least, at least 0.1 and at most ``most_left_out``, is not sent, in convolutions of
    each kernel; matrices and the head are whole. The server averages what came by examples, and keeps an entry that
    nobody sends. The authors multiply step sizes of their CNN by 20, set those of three models by hand, set them again
    in each epoch, send nothing of 1x1 convolutions, and take entries that are 0 as not sent; here a mask is sent, and
    what is left out travels as zeros.
    """

    client_rule = FlayerRule
    head: str = Option("head", "Layers that begin between the client's own and the global ones.")
    own_head: bool = Option(True, "Whether the client's head, weighted by its accuracy, is mixed into the global one.")
    head_epochs: CountOrZero = Option(1, "Epochs of the head before the model is evaluated and trained.")
    head_scale: Positive = Option(0.2, "Factor of the step size of the head.")
    depth: NonNegative = Option(1.0, "Factor of how step sizes grow with depth; 0 lets all but the head have the same.")
    most_left_out: Share = Option(0.9, "Largest share of a tensor's entries that is not sent; with 0 all are sent.")

    def prepare(self) -> None:
        self._head, _ = two_parts(self.layers, "head", self.head)

    def kept(self, server_round: int) -> LayerGroup:
        return self._head

    def planned_sets(self, server_round: int, client: int) -> Mapping[str, tuple[int, int]]:
        head = self.layers.keys(self._head, buffers=False)
        masked = _left_out(self.global_model, self.parameters, head, self.most_left_out)
        size = sum(self.global_model[key].numel() for key in masked)  # a byte for each entry
        return {MASK: (size, 0)} if masked else {}

    def aggregate(self, server_round: int, updates: Sequence[ClientUpdate]) -> Params:
        average = self.average(updates)
        if MASK not in updates[0].sets:
            return average
        sent = [{key: mask.double() for key, mask in update.sets[MASK].items()} for update in updates]
        return mean_of_sent(average, sent, [update.num_examples for update in updates], self.global_model)


def _left_out(params: Params, names: Sequence[str], head: Collection[str], most: float) -> dict[str, float]:
    """Return the share of entries that is not sent, of the tensors of which any is."""
    shares = {key: min(max(1 - place / len(names), LEAST_LEFT_OUT), most) for place, key in enumerate(names)}
    return {key: share for key, share in shares.items() if share and params[key].dim() != 2 and key not in head}


def _most_moved(moved: Tensor, left_out: float) -> Tensor:
    """Return which entries are sent: of each kernel, or of a vector, all but that share, at least one of each kind."""
    rows = moved.flatten(2) if moved.dim() > 2 else moved.flatten()
    n = rows.shape[-1]
    count = min(max(round(n * left_out), 1), n - 1)
    least = rows.argsort(dim=-1, stable=True)[..., :count]
    return torch.ones_like(rows, dtype=torch.bool).scatter(-1, least, value=False).view_as(moved)
