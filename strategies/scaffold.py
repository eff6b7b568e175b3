"""Control variates keep clients from drifting."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from fedsim.models.averaging import weighted_mean
from fedsim.models.params import Params
from fedsim.strategy import ClientRule, ClientUpdate, Finished, Local, Sets, Step, Strategy, draw_unseen


class Scaffold(Strategy):
    """Average all layers of clients that correct each step by what others descend: SCAFFOLD.

    Parameters
    ----------
    server_lr
        Share of the way from the old global parameters to the mean that the server goes, the paper's eta_g.

    Raises
    ------
    ValueError
        If ``server_lr`` is not positive.

    References
    ----------
    Karimireddy et al. 2020, SCAFFOLD, arXiv 1910.06378, algorithm 1 with option II.

    Notes
    -----
    The mean is over clients, not over examples, as in the paper. Control variates are those of parameters; running
    statistics are averaged as they are. It takes the double of FedAvg's bytes, both ways.
    """

    def __init__(self, model: nn.Module, server_lr: float = 1.0, **settings: Any) -> None:
        super().__init__(model, **settings)
        if server_lr <= 0:
            raise ValueError(f"server_lr = {server_lr} must be greater than 0; 1 takes the mean as it is")
        self._server_lr = server_lr
        self._parameters = self.layers.keys(self.layers.names, buffers=False)
        self._control: Params = {}

    def client_rule(self) -> ClientRule:
        """Clients keep their control variate, and send by how much it has changed."""
        return ScaffoldRule()

    def sets_for(self, server_round: int, client: int) -> Sets:
        """Send the server's control variate."""
        return {"server_control": self._server_control()}

    def aggregate(self, server_round: int, updates: Sequence[ClientUpdate]) -> Params:
        """Go towards the uniform mean, and move the control variate by the mean change times the share of clients."""
        equal = [1.0] * len(updates)
        changes = weighted_mean([update.sets["control_change"] for update in updates], equal, self.precision)
        trainable = self.clients - len(draw_unseen(self.seed, self.clients, self.unseen))
        share = len(updates) / trainable
        self._control = {key: value + share * changes[key] for key, value in self._server_control().items()}
        mean = weighted_mean([update.shared for update in updates], equal, self.precision)
        return {
            key: torch.lerp(self.global_model[key], value, self._server_lr) if key in self._parameters else value
            for key, value in mean.items()
        }

    def state(self) -> Params:
        """Remember the control variate."""
        return dict(self._control)

    def load_state(self, state: Params) -> None:
        """Take the control variate back."""
        self._control = dict(state)

    def _server_control(self) -> Params:
        return self._control or {key: torch.zeros_like(self.global_model[key]) for key in self._parameters}


class ScaffoldRule(ClientRule):
    """Adds c - c_k to each gradient; the set ``path`` adds up step sizes, which gives K times eta for any plan."""

    trained = ("path",)
    plain_sgd = True

    def start(self, local: Local) -> Local:
        """Begin without a control variate in the first round."""
        server = local.sets["server_control"]
        control = local.sets.get("control") or {key: torch.zeros_like(value) for key, value in server.items()}
        length = next(iter(server.values())).new_zeros(())
        return replace(local, sets={**local.sets, "control": control, "path": {"length": length}})

    def gradient(self, step: Step, gradients: Params) -> Params:
        """Return the corrected gradients, and a slope of -1 for the path."""
        server, own = step.sets["server_control"], step.sets["control"]
        corrected = {key: value + server[key] - own[key] for key, value in gradients.items() if key in server}
        return corrected | {"path/length": -torch.ones_like(step.sets["path"]["length"])}

    def finish(self, local: Local, started: Local) -> Finished:
        """Keep the new control variate: c_k - c + (x - y) / (K eta)."""
        server, own, length = started.sets["server_control"], started.sets["control"], local.sets["path"]["length"]
        descended = {key: (started.params[key] - local.params[key]) / length for key in server}
        change = {key: descended[key] - value for key, value in server.items()}
        control = {key: value + change[key] for key, value in own.items()}
        return Finished(local.params, kept={"control": control}, sent={"control_change": change})
