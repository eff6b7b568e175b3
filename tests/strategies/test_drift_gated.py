"""Layers that moved far, chosen and averaged by hand."""

from types import SimpleNamespace

import pytest
import torch

from fedsim.models.params import Params
from strategies import DriftGated
from tests.strategies.harness import Mlp, Play, assert_close, descend, mean_of, norm_mlp

LR, LAYERS = 0.1, ("fc1", "fc2", "fc3")


def drift(before: Params, after: Params, normalise: bool) -> dict[str, float]:
    norms = {}
    for layer in LAYERS:
        keys = (f"{layer}.weight", f"{layer}.bias")
        change = torch.cat([(after[key] - before[key]).flatten() for key in keys])
        norms[layer] = float(change.norm()) / (len(change) if normalise else 1)
    return norms


@pytest.mark.parametrize(
    "options",
    [
        {"select": "share", "share": 0.4},
        {"select": "share", "share": 0.4, "largest": False, "normalise": False},
        {"select": "threshold", "threshold": 0.012},
        {"select": "threshold", "threshold": 0.15, "normalise": False},
        {"select": "threshold", "threshold": 0.012, "largest": False},
    ],
)
def test_three_rounds_by_hand(options: dict) -> None:
    play = Play("drift_gated", options)
    own, model, last, averaged_in = [play.initial] * 3, play.initial, [0] * 3, dict.fromkeys(LAYERS, -1)
    counts = set()
    for server_round in play.rounds():
        sent: dict[str, list[tuple[int, Params]]] = {layer: [] for layer in LAYERS}
        for client in sorted(play.present(server_round)):
            fresh = [key for key in model if averaged_in[key.partition(".")[0]] >= last[client]]
            start = own[client] | {key: model[key] for key in fresh}
            own[client] = descend(play.model, start, play.batches(server_round, client), LR)
            norms = drift(start, own[client], options.get("normalise", True))
            ranked = sorted(LAYERS, key=lambda layer: norms[layer])
            largest = options.get("largest", True)
            if options["select"] == "share":
                chosen = ranked[-2:] if largest else ranked[:2]
            else:
                chosen = [layer for layer in LAYERS if (norms[layer] >= options["threshold"]) == largest]
            assert set(play.uploaded(client)) == {key for key in model if key.partition(".")[0] in chosen}
            counts.add(len(chosen))
            for layer in chosen:
                sent[layer].append((play.sizes[client], own[client]))
            last[client] = server_round
        for layer, members in sent.items():
            if members:
                mean = mean_of([params for _, params in members], [n for n, _ in members])
                model = {key: mean[key] if key.startswith(layer) else value for key, value in model.items()}
                averaged_in[layer] = server_round
        assert_close(play.strategy.global_model, model)
    assert counts != {3}


def test_a_threshold_of_zero_and_a_share_of_one_are_fedavg() -> None:
    for options in ({"select": "threshold"}, {"select": "share", "share": 1.0}):
        gated, full = Play("drift_gated", options, model=norm_mlp), Play("full", model=norm_mlp)
        for server_round in full.rounds():
            assert_close(gated.round(server_round), full.strategy.global_model, 0)
            assert gated.uploaded(0).keys() == full.uploaded(0).keys()


def test_what_nobody_sends_stays_with_everybody() -> None:
    play = Play("drift_gated", {"select": "threshold", "threshold": 1e6})
    alone = Play("local")
    for server_round in alone.rounds():
        assert_close(play.round(server_round), play.initial, 0)
        assert_close(play.personalised(1), alone.personalised(1), 0)


def test_running_statistics_go_with_their_layer_and_do_not_count_as_drift() -> None:
    play = Play("drift_gated", {"share": 0.25}, model=norm_mlp)
    for server_round in play.rounds():
        for client in play.present(server_round):
            layers = {key.partition(".")[0] for key in play.uploaded(client)}
            assert len(layers) == 1
            assert layers != {"bn"} or len(play.uploaded(client)) == 4
    personal = Play("drift_gated", {"share": 1.0, "buffers": "personal"}, model=norm_mlp)
    personal.round(1)
    assert not any("running" in key for key in personal.uploaded(0))


def test_what_is_exactly_at_the_threshold_is_sent() -> None:
    before = {key: value.double() for key, value in Mlp().state_dict().items()}
    still, moved = ({**before, "fc2.bias": torch.eye(5).double()[0] * size} for size in (0.0, 0.5))
    for threshold, sent in ((0.0, {"fc1", "fc2", "fc3"}), (0.25, {"fc2"}), (0.5, {"fc2"}), (0.75, set())):
        rule = DriftGated.make_rule(Mlp(), select="threshold", threshold=threshold, normalise=False)
        finished = rule.finish(SimpleNamespace(params=moved), SimpleNamespace(params=still))  # type: ignore[arg-type]
        assert {key.partition(".")[0] for key in finished.upload or {}} == sent


def test_a_share_is_rounded_up_but_not_by_a_rounding_error() -> None:
    layers = torch.nn.Sequential(*[torch.nn.Linear(1, 1) for _ in range(100)])
    counts = [DriftGated.make_rule(layers, share=share).count for share in (0.07, 0.071, 1.0)]
    assert counts == [7, 8, 100]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"threshold": -1.0}, "threshold = -1.0 must be at least 0"),
        ({"share": 0.0}, "share = 0.0 must be greater than 0 and at most 1"),
        ({"share": 1.2}, "share = 1.2 must be greater than 0"),
    ],
)
def test_bad_options_are_named(options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        DriftGated(Mlp(), **options)
