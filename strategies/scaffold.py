"""Control variates keep clients from drifting."""

from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch

from fedsim.models.params import Params
from fedsim.strategy import ClientRule, ClientUpdate, Finished, Local, Option, Positive, Sets, Step, Strategy


class ScaffoldRule(ClientRule):
    """Adds c - c_k to each gradient; the set ``path`` adds up step sizes, which gives K times eta for any plan."""

    trained = ("path",)
    plain_sgd = True

    def start(self, local: Local) -> Local:
        server = local.sets["server_control"]
        control = local.sets.get("control") or {key: torch.zeros_like(value) for key, value in server.items()}
        length = next(iter(server.values())).new_zeros(())
        return replace(local, sets={**local.sets, "control": control, "path": {"length": length}})

    def gradient(self, step: Step, gradients: Params) -> Params:
        server, own = step.sets["server_control"], step.sets["control"]
        corrected = {key: value + server[key] - own[key] for key, value in gradients.items() if key in server}
        # SGD takes lr off the path's slope of -1 in each step.
        return corrected | {"path/length": -torch.ones_like(step.sets["path"]["length"])}

    def finish(self, local: Local, started: Local) -> Finished:
        # The new control variate is c_k - c + (x - y) / (K eta).
        server, own, length = started.sets["server_control"], started.sets["control"], local.sets["path"]["length"]
        descended = {key: (started.params[key] - local.params[key]) / length for key in server}
        change = {key: descended[key] - value for key, value in server.items()}
        control = {key: value + change[key] for key, value in own.items()}
        return Finished(local.params, kept={"control": control}, sent={"control_change": change})


class Scaffold(Strategy):
    """Average all layers of clients that correct each step by what others descend: SCAFFOLD.

    References
    ----------
    Karimireddy et al. 2020, SCAFFOLD, arXiv 1910.06378, algorithm 1 with option II.

    Notes
    -----
    It is defined for plain SGD; with a schedule, the paper's K eta is the sum of the step sizes. The mean is over
    clients, not over examples, as in the paper. Control variates are those of parameters; running statistics are
    averaged as they are. It takes twice FedAvg's bytes, both ways.
    """

    client_rule = ScaffoldRule
    server_lr: Positive = Option(1.0, "Share of the way from the old parameters to the mean, the paper's eta_g.")

    def sets_for(self, server_round: int, client: int) -> Sets:
        return {"server_control": self._control()}

    def planned_sets(self, server_round: int, client: int) -> Mapping[str, tuple[int, int]]:
        size = sum(self.global_model[key].nbytes for key in self.parameters)
        return {"control_change": (size, 0), "server_control": (0, size)}

    def aggregate(self, server_round: int, updates: Sequence[ClientUpdate]) -> Params:
        equal = [1.0] * len(updates)
        changes, share = self.average(updates, equal, "control_change"), len(updates) / len(self.clients_that_train)
        self.memory = {key: value + share * changes[key] for key, value in self._control().items()}
        return self.toward(self.average(updates, equal), self.server_lr)

    def _control(self) -> Params:
        return self.memory or {key: torch.zeros_like(self.global_model[key]) for key in self.parameters}
