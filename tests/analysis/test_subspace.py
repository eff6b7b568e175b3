import copy

import numpy as np
import pandas as pd
import pytest
import torch
from scipy.linalg import orth

from fedsim.analysis.directions import random_directions as directions
from fedsim.analysis.directions.training_space import TrainingSpace
from fedsim.analysis.subspace import subspace_robustness
from fedsim.models.layers import Layers
from fedsim.models.params import Params
from fedsim.seeds import rng
from tests.analysis.cases import Quadratic, mean_of, models, norm_net, plain_losses, points, squared, train_two, whole

LAYERS = Layers.of(Quadratic())


def robustness_of(model, trajectories, inputs, targets, **options):
    """Measure the last models of trajectories."""
    finals = [own[-1] if own else {} for own in trajectories]
    return subspace_robustness(model, finals, inputs, targets, trajectories=trajectories, **options)


def restricted(state: Params, names: str) -> np.ndarray:
    return np.concatenate([state[f"{name}.weight"].numpy().ravel() for name in names])


@pytest.mark.parametrize("names", ["a", "b", "c", "bc", "abc"])
def test_noise_is_split_by_the_projection_onto_an_orthonormal_basis(names: str) -> None:
    *checkpoints, origin = points(4)
    # Twice the same and a mixture of others add nothing.
    checkpoints += [checkpoints[0], mean_of(checkpoints, [1, 2, 3])]
    layers = [LAYERS[name] for name in names]
    space = TrainingSpace(checkpoints, origin, LAYERS, draws=2, seed=3)
    away = np.stack([restricted(each, names) - restricted(origin, names) for each in checkpoints], 1)
    basis = orth(away, rcond=1e-10)
    assert space.rank(layers) == basis.shape[1]
    noise = np.concatenate(
        [
            rng(3, "subspace", 1, name).standard_normal(n)
            for name, n in zip("abc", (2, 3, 4), strict=True)
            if name in names
        ]
    )
    inside, outside = space.split(layers, 1)
    assert np.concatenate(list(inside.values())) == pytest.approx(basis @ (basis.T @ noise), abs=1e-12)
    if len(noise) == basis.shape[1]:
        assert outside is None
    else:
        assert np.concatenate(list(outside.values())) == pytest.approx(noise - basis @ (basis.T @ noise), abs=1e-12)


def test_rounding_of_checkpoints_is_no_direction_of_training() -> None:
    # Points of one line, rounded to float32.
    model = torch.nn.Sequential(torch.nn.Linear(40, 30))
    with torch.random.fork_rng():
        torch.manual_seed(0)
        start, step = ({key: torch.randn_like(value) for key, value in model.state_dict().items()} for _ in range(2))
    line = [{key: start[key] + t * 1e-3 * step[key] for key in start} for t in range(10)]
    (layer,) = Layers.of(model)
    assert TrainingSpace(line, start, [layer], draws=1, seed=0).rank([layer]) == 1


def test_every_direction_has_the_norm_that_is_asked_for() -> None:
    first, second = points(3), points(2, seed=1)
    table = robustness_of(
        Quadratic(),
        [first, second],
        torch.zeros(1, 1),
        whole(second[-1]).expand(1, -1),
        groups=["layers", "full", "windows:2"],
        sigmas=(0.25, 2.0),
        base=1,
        criterion=squared,
    )
    there = table[table["draws"] > 0]
    assert there["loss"].to_numpy() == pytest.approx(there["sigma"].to_numpy() ** 2, rel=1e-12)
    # Four checkpoints beside the model: they fill layers of up to 4 parameters, so that nothing is left outside.
    gone = table[table["draws"] == 0]
    assert set(zip(gone["group"], gone["direction"], strict=True)) == {(name, "null") for name in "abc"}
    assert gone["loss"].isna().all()


def test_noise_outside_of_the_training_space_keeps_what_depends_on_that_space_only() -> None:
    first, second = points(2), points(2, seed=1)
    away = torch.stack([whole(state) - whole(first[-1]) for state in (first[0], *second)])
    table = robustness_of(
        Quadratic(),
        [first, second],
        torch.zeros(1, 1),
        whole(first[-1]).expand(1, -1),
        groups="full",
        sigmas=(1.0,),
        criterion=lambda outputs, targets: ((outputs - targets) @ away.T).square().sum(1),
    ).set_index("direction")
    assert table["loss"]["null"] < 1e-20
    assert table["loss"]["training"] > 0.1
    assert table["loss"]["average"] > 0.1


@pytest.mark.parametrize("base", [0, 1])
def test_as_far_as_the_average_towards_the_average_is_the_average(base: int) -> None:
    model, states, inputs, targets = models(3, norm_net)
    average = mean_of(states, [1, 2, 5])
    keys = [key for key in average if key.rpartition(".")[2] in ("weight", "bias")]
    away = sum(float((average[key] - states[base][key]).square().sum()) for key in keys) ** 0.5
    table = robustness_of(
        model,
        [[state] for state in states],
        inputs,
        targets,
        groups="full",
        sigmas=(away, 3 * away),
        base=base,
        weights=[1, 2, 5],
    )
    # Running statistics stay.
    expected, _ = plain_losses(model, states[base] | {key: average[key] for key in keys}, inputs, targets)
    row = table[(table["direction"] == "average") & (table["sigma"] == away)].iloc[0]
    assert row["loss"] == pytest.approx(float(expected.mean()), abs=1e-12)


def test_numbers_depend_neither_on_what_else_is_asked_for_nor_on_passes(monkeypatch: pytest.MonkeyPatch) -> None:
    model, states, inputs, targets = models(4)
    trajectories = [states[:2], states[2:]]
    options = {"sigmas": (1.0, 2.0), "draws": 3}
    every = robustness_of(model, trajectories, inputs, targets, groups=["layers", "full"], **options)
    monkeypatch.setattr(directions, "PASS_BYTES", 1)
    few = robustness_of(model, trajectories, inputs, targets, groups={"2": "2"}, threads=2, **options)
    pd.testing.assert_frame_equal(every.query("group == '2'").reset_index(drop=True), few)


def test_models_that_never_moved_have_no_direction() -> None:
    model, states, inputs, targets = models(1)
    table = robustness_of(model, [states, copy.deepcopy(states)], inputs, targets, sigmas=(1.0,), groups="full")
    assert table.set_index("direction")["draws"].to_dict() == {"training": 0, "null": 5, "average": 0}


def test_noise_within_the_training_space_harms_and_noise_outside_does_not() -> None:
    trained = train_two(same_start=True)
    table = robustness_of(
        trained.model,
        trained.trajectories,
        trained.inputs,
        trained.targets,
        groups=["layers", "full"],
        sigmas=(2.0,),
        draws=8,
    )
    own = plain_losses(trained.model, trained.finals[0], trained.inputs, trained.targets)[0].mean()
    cost = table.pivot_table(index="group", columns="direction", values="loss") - float(own)
    assert (cost["training"] > 2 * cost["null"]).all()
    assert cost["training"]["full"] > 10 * cost["null"]["full"]


def test_wrong_arguments_are_named() -> None:
    model, states, inputs, targets = models(3)
    good = [[states[0], states[1]], [states[2]]]
    alias = [model.state_dict(), model.state_dict()]
    for trajectories, options, message in (
        ([[states[0]]], {}, "trajectories has 1 models"),
        ([[states[0]], []], {}, "trajectory 1 is empty"),
        ([alias, [states[0]]], {}, "checkpoints of trajectory 0 share their memory; clone each"),
        ([[states[0]], [{}]], {}, "checkpoint 0 of trajectory 1 lacks the entry"),
        (good, {"sigmas": (1.0, 0.0)}, "each positive and finite"),
        (good, {"sigmas": ()}, "there must be some"),
        (good, {"draws": 0}, "draws = 0"),
        (good, {"base": 2}, "base = 2 is no model"),
    ):
        with pytest.raises(ValueError, match=message):
            robustness_of(model, trajectories, inputs, targets, **options)
