"""pFedLA against the paper's update, with the mixture differentiated as a whole by autograd."""

import numpy as np
import pytest
import torch
from torch import Tensor

from fedsim.models.params import Params
from fedsim.seeds import rng
from strategies import HeurPFedLA, PFedLA
from tests.strategies.harness import Mlp, Play, assert_close, descend, mean_of, norm_mlp

LR, MIXER_LR, EMBEDDING, HIDDEN = 0.1, 3.0, 4, 5
OPTIONS = {"mixer_lr": MIXER_LR, "embedding": EMBEDDING, "hidden": HIDDEN}
LAYERS = ("fc1", "fc2", "fc3")


def first_mixer(client: int) -> list[Tensor]:
    stream, tensors = rng(0, "mixer"), [rng(0, "embedding", client).normal(size=EMBEDDING)]
    for inputs in (EMBEDDING, HIDDEN, HIDDEN):
        bound = 1 / np.sqrt(inputs)
        tensors += [stream.uniform(-bound, bound, (HIDDEN, inputs)), stream.uniform(-bound, bound, HIDDEN)]
    tensors += [stream.uniform(0, 1, (3, 3, HIDDEN)), np.zeros((3, 3))]
    return [torch.from_numpy(value) for value in tensors]


def weights_of(mixer: list[Tensor], client: int) -> list[Tensor]:
    hidden = mixer[0]
    for weight, bias in zip(mixer[1:7:2], mixer[2:7:2], strict=True):
        hidden = torch.relu(weight @ hidden + bias)
    rows = []
    for head, bias in zip(mixer[7], mixer[8], strict=True):
        row = torch.relu(head @ hidden + bias)
        rows.append(row / row.sum() if row.sum() > 0 else torch.eye(3, dtype=torch.float64)[client])
    return rows


def mixture(rows: list[Tensor], models: list[Params]) -> Params:
    row_of = dict(zip(LAYERS, rows, strict=True))
    return {
        key: sum(a * model[key] for a, model in zip(row_of[key.partition(".")[0]], models, strict=True))
        for key in models[0]
    }


@pytest.mark.parametrize("local_layers", [0, 1, 2])
def test_four_rounds_are_those_of_the_paper(local_layers: int) -> None:
    options = {**OPTIONS, "local_layers": local_layers} if local_layers else OPTIONS
    play = Play("heurpfedla" if local_layers else "pfedla", options, rounds=4, absent={1: 2, 3: 1})
    models, mixers = [play.initial] * 3, [first_mixer(client) for client in range(3)]
    for server_round in play.rounds():
        returned, learnt = {}, {}
        for client in sorted(play.present(server_round)):
            mixer = [value.clone().requires_grad_() for value in mixers[client]]
            rows = weights_of(mixer, client)
            own = torch.eye(3, dtype=torch.float64)[client]
            ranked = sorted(range(3), key=lambda row: -float(rows[row][client].detach()))
            rows = [own if number in ranked[:local_layers] else row for number, row in enumerate(rows)]
            mixed = mixture(rows, models)
            start = {key: value.detach() for key, value in mixed.items()}
            returned[client] = descend(play.model, start, play.batches(server_round, client), LR)
            assert_close(play.uploaded(client), returned[client])
            if server_round > 1:
                stay = {LAYERS[number] for number in ranked[:local_layers]}
                assert {key.partition(".")[0] for key in play.downloaded(client)} == set(LAYERS) - stay
            change = [returned[client][key] - start[key] for key in start]
            moving = [key for key in mixed if mixed[key].requires_grad]
            slopes = torch.autograd.grad(
                [mixed[key] for key in moving], mixer, [c for k, c in zip(start, change, strict=True) if k in moving]
            )
            learnt[client] = [(v + MIXER_LR * s).detach() for v, s in zip(mixer, slopes, strict=True)]
        for client, model in returned.items():
            models[client], mixers[client] = model, learnt[client]
        expected = mean_of(list(returned.values()), [play.sizes[client] for client in returned])
        assert_close(play.strategy.global_model, expected)
    before, after = (torch.stack(weights_of(mixer, 0)) for mixer in (first_mixer(0), mixers[0]))
    assert (before - after).abs().max() > 0.01


def test_the_weights_move_towards_who_helps() -> None:
    """Clients 0 and 1 have the same data, and client 2 labels them otherwise: it loses weight with the others."""

    def change(client: int, inputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        stream = np.random.default_rng(0)
        values, labels = torch.from_numpy(stream.normal(size=(8, 4))), torch.from_numpy(stream.integers(3, size=8))
        return values, (labels + (client == 2)) % 3

    play = Play("pfedla", {"mixer_lr": 0.05}, rounds=8, absent={}, sizes=(8, 8, 8), change=change)
    play.round(1)
    before = play.strategy.weights_of(0)
    for server_round in range(2, 9):
        play.round(server_round)
    after = play.strategy.weights_of(0)
    assert after[:, 2].mean() < before[:, 2].mean()


def test_with_equal_weights_and_sizes_it_is_fedavg() -> None:
    settings = {"sizes": (6, 6, 6), "absent": {}, "model": norm_mlp}
    play, full = Play("pfedla", {"mixer_lr": 0.0}, **settings), Play("full", **settings)
    strategy = play.strategy
    strategy.clients = 3
    strategy.meet_clients()
    strategy.memory["mixer"] = {}
    for client in range(3):
        mixer = strategy.mixer_of(client)
        strategy.memory["mixer"][str(client)] = mixer | {
            "head": torch.zeros_like(mixer["head"]),
            "head_bias": torch.ones_like(mixer["head_bias"]),
        }
    for server_round in full.rounds():
        assert_close(play.round(server_round), full.strategy.global_model, 1e-13)
        assert_close(play.personalised(1), full.personalised(1), 1e-13)


def test_a_client_that_nobody_knew_gets_the_plain_mean() -> None:
    play = Play("pfedla", OPTIONS)
    play.round(1)
    mean = mean_of([play.uploaded(client) for client in range(3)], [1.0] * 3)
    assert_close(play.strategy.for_client(2, 7), mean)


def test_clients_that_never_train_are_in_no_mixture() -> None:
    strategy = PFedLA(Mlp(), unseen=0.25)
    strategy.set_global_model(Mlp().state_dict())
    strategy.clients = 4
    strategy.meet_clients()
    known = strategy.known
    assert len(known) == 3
    assert set(known) < {0, 1, 2, 3}


def test_a_layer_without_any_weight_stays_the_clients_own() -> None:
    play = Play("pfedla", {"mixer_lr": 0.0})
    play.round(1)
    mixer = play.strategy.memory["mixer"]["1"]
    mixer["head"], mixer["head_bias"] = mixer["head"].clone(), mixer["head_bias"].clone()
    mixer["head"][2], mixer["head_bias"][2] = 0, -1
    taken = play.strategy.for_client(2, 1)
    assert torch.equal(taken["fc3.weight"], play.uploaded(1)["fc3.weight"])
    assert not torch.equal(taken["fc2.weight"], play.uploaded(1)["fc2.weight"])


def test_running_statistics_are_mixed_with_their_layer_but_do_not_teach() -> None:
    play = Play("pfedla", {"mixer_lr": 0.0}, model=norm_mlp)
    play.round(1)
    assert "bn.running_var" in play.personalised(0)
    row = play.strategy.weights_of(0)[1]
    mixed = sum(float(a) * play.uploaded(client)["bn.running_var"] for client, a in enumerate(row))
    torch.testing.assert_close(play.strategy.for_client(2, 0)["bn.running_var"], mixed)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"mixer_lr": -0.1}, "mixer_lr = -0.1 must be at least 0"),
        ({"embedding": 0}, "embedding = 0 must be at least 1"),
        ({"hidden": 0}, "hidden = 0 must be at least 1"),
        ({"local_layers": 0}, "local_layers = 0 must be at least 1"),
        ({"local_layers": 3}, "local_layers = 3 must be less than all 3 layers"),
    ],
)
def test_bad_options_are_named(options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        HeurPFedLA(Mlp(), **options)
