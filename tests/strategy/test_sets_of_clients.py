"""Each client gets the parameter sets that were made for it, however short they live on the server."""

import weakref

import torch
from flwr.app import ConfigRecord
from flwr.clientapp import ClientApp
from torch import Tensor, nn

from fedsim.federation.engines.local import LocalEngine
from fedsim.strategy import Sets, messages
from strategies import LayerSet

CLIENTS = 3


class OfEachClient(LayerSet):
    made: list[weakref.ref[Tensor]] = []  # noqa: RUF012

    def sets_for(self, server_round: int, client: int) -> Sets:
        assert all(made() is not None for made in self.made), "another tensor could take its identity, and its record"
        value = torch.full((2, 3), float(client))
        self.made.append(weakref.ref(value))
        return {"own": {"part": value}}


def test_clients_get_their_own_sets_though_the_server_keeps_none_of_them() -> None:
    strategy = OfEachClient(nn.Sequential(nn.Linear(2, 2)))
    with LocalEngine(ClientApp, CLIENTS, workers=1) as engine:
        strategy.clients = range(CLIENTS)
        sent = list(strategy.configure_evaluate(1, strategy.arrays, ConfigRecord(), engine))
    assert len(sent) == len(strategy.made) == CLIENTS
    values = [messages.decode(messages.sets_of(message.content)["own"])["part"] for message in sent]
    assert sorted(float(value[0, 0]) for value in values) == [0, 1, 2]
