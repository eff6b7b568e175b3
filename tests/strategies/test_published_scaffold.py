"""SCAFFOLD of NIID-Bench in Flower's baselines: SGD with momentum, then a move by the variates, in each step."""

from experiments.published.niid_bench import MOMENTUM
from fedsim.config import read_toml
from tests.strategies.harness import Play, assert_close, gradient, mean_of
from tests.whole.test_experiments import ROOT

LR = 0.1


def test_rounds_are_those_of_the_released_optimizer() -> None:
    play = Play("experiments.published.niid_bench:Scaffold", local={"momentum": MOMENTUM})
    x = play.initial
    c = {key: 0 * value for key, value in x.items()}
    controls = [c] * 3
    for server_round in play.rounds():
        uploads, changes, sizes = [], [], []
        for client in sorted(play.present(server_round)):
            batches, y, own = play.batches(server_round, client), x, controls[client]
            velocity = {key: 0 * value for key, value in x.items()}
            for batch in batches:
                slopes = gradient(play.model, y, batch)
                velocity = {key: MOMENTUM * velocity[key] + slopes[key] for key in y}
                y = {key: y[key] - LR * velocity[key] - LR * (c[key] - own[key]) for key in y}
            controls[client] = {key: own[key] - c[key] + (x[key] - y[key]) / (len(batches) * LR) for key in y}
            assert_close(play.kept(client)["control"], controls[client])
            uploads.append(y)
            changes.append({key: controls[client][key] - own[key] for key in y})
            sizes.append(play.sizes[client])
        x, change = mean_of(uploads, sizes), mean_of(changes, sizes)
        c = {key: c[key] + len(sizes) / 3 * change[key] for key in c}
        assert_close(play.strategy.global_model, x)
        assert_close(play.strategy.state(), c)


def test_the_file_has_its_momentum() -> None:
    assert read_toml(ROOT / "published" / "niid_bench_scaffold.toml")["local"]["momentum"] == MOMENTUM
