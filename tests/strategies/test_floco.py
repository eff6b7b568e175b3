"""Floco against the authors' baseline, written down plainly, with scikit-learn's principal components."""

from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.decomposition import PCA
from torch import Tensor
from torch.func import functional_call
from torch.nn.functional import cross_entropy

from fedsim.models.params import Params
from fedsim.seeds import rng
from fedsim.strategy.messages import sets_of
from strategies import Floco
from strategies.floco import _onto_simplex, _spread
from tests.strategies.agreement import assert_trains_alike
from tests.strategies.harness import Mlp, Play, assert_close, mean_of, norm_mlp

LR, RADIUS, ENDPOINTS = 0.1, 0.4, 3
HEAD = ("fc3.weight", "fc3.bias")
OPTIONS = {"endpoints": ENDPOINTS, "whole_rounds": 2, "radius": RADIUS}


def initial_endpoints(play: Play) -> dict[str, list[Tensor]]:
    corners: dict[str, list[Tensor]] = {}
    for key in HEAD:
        value = play.initial[key]
        corners[key] = [value]
        for number in range(1, ENDPOINTS):
            order = rng(0, "endpoint", number, key).permutation(value.numel())
            corners[key].append(value.flatten()[torch.from_numpy(order)].reshape(value.shape))
    return corners


def at(point: np.ndarray, corners: dict[str, list[Tensor]]) -> Params:
    return {key: sum(float(p) * value for p, value in zip(point, corners[key], strict=True)) for key in HEAD}


def drawn(stream: np.random.Generator, centre: np.ndarray | None) -> np.ndarray:
    if centre is None:
        return stream.dirichlet(np.ones(ENDPOINTS))
    u = stream.uniform(-1, 1, ENDPOINTS)
    u = np.sign(u) * np.abs(u) / np.abs(u).sum()
    point = np.clip(centre + stream.uniform(0, RADIUS) * u, 0, None)
    return point / point.sum()


def project(kappas: np.ndarray, z: np.ndarray) -> np.ndarray:
    """Return, for each z and row, what is above the shift, found by bisection, that makes it sum to z."""
    low, high = kappas.min(1) - z[:, None], np.repeat(kappas.max(1)[None], len(z), 0)
    for _ in range(80):
        middle = (low + high) / 2
        above = np.maximum(kappas - middle[:, :, None], 0).sum(2) > z[:, None]
        low, high = np.where(above, middle, low), np.where(above, high, middle)
    return np.maximum(kappas - low[:, :, None], 0)


def centres(changes: list[np.ndarray]) -> np.ndarray:
    kappas = PCA(n_components=ENDPOINTS).fit_transform(np.array(changes))
    betas = project(kappas, np.linspace(1e-4, 1, 1000))
    betas /= betas.sum(2, keepdims=True)
    energies = np.zeros(len(betas))
    for i in range(len(changes)):
        for j in range(i):
            energies += 1 / np.maximum(np.linalg.norm(betas[:, i] - betas[:, j], axis=1), 1e-4) ** 2
    return betas[energies.argmin()]


def test_four_rounds_are_those_of_the_baseline() -> None:
    play = Play("floco", OPTIONS, rounds=4)
    body = {key: value for key, value in play.initial.items() if key not in HEAD}
    corners, last, regions = initial_endpoints(play), {}, [None] * 3
    for server_round in play.rounds():
        bodies, ends, weights = [], [], []
        for client in sorted(play.present(server_round)):
            leaves = {key: value.clone() for key, value in body.items()}
            own = {key: [value.clone() for value in values] for key, values in corners.items()}
            stream = rng(0, "rule", server_round, client)
            for inputs, targets in play.batches(server_round, client):
                every = [*leaves.values(), *own[HEAD[0]], *own[HEAD[1]]]
                for value in every:
                    value.requires_grad_()
                head = at(drawn(stream, regions[client]), own)
                loss = cross_entropy(functional_call(play.model, leaves | head, (inputs,)), targets)
                for value, slope in zip(every, torch.autograd.grad(loss, every), strict=True):
                    value.requires_grad_(False).sub_(LR * slope)
            assert_close(play.uploaded(client), leaves)
            bodies.append(leaves)
            ends.append({key: torch.stack(values) for key, values in own.items()})
            weights.append(play.sizes[client])
            last[client] = torch.cat([torch.stack(corners[key]).flatten() - ends[-1][key].flatten() for key in HEAD])
        body, mean = mean_of(bodies, weights), mean_of(ends, weights)
        corners = {key: list(mean[key]) for key in HEAD}
        if server_round == OPTIONS["whole_rounds"]:
            regions = list(centres([last[client].numpy() for client in range(3)]))
            assert min(np.abs(a - b).max() for i, a in enumerate(regions) for b in regions[:i]) > 0.1
        middle = at(np.full(ENDPOINTS, 1 / ENDPOINTS), corners)
        assert_close(play.strategy.global_model, play.initial | body | middle)
        for client in range(3):
            expected = middle if regions[client] is None else at(regions[client], corners)
            assert_close(play.personalised(client), play.initial | body | expected)


def test_with_one_endpoint_it_is_fedavg() -> None:
    floco = Play("floco", {"endpoints": 1, "whole_rounds": 1}, model=norm_mlp)
    full = Play("full", model=norm_mlp)
    for server_round in full.rounds():
        assert_close(floco.round(server_round), full.strategy.global_model, 1e-13)
        assert_close(floco.personalised(2), full.personalised(2), 1e-13)


def test_points_are_in_the_simplex_and_within_the_region() -> None:
    rule, stream = Floco.make_rule(Mlp(), **OPTIONS), np.random.default_rng(0)
    for centre, whole in (([0.2, 0.5, 0.3], False), ([0.0, 0.1, 0.9], False), ([1 / 3] * 3, True)):
        region = {"region": {"centre": torch.tensor(centre, dtype=torch.float64), "whole": torch.tensor(whole)}}
        points = torch.stack([rule.draw(stream, region)["point"] for _ in range(2000)])
        assert (points >= 0).all()
        torch.testing.assert_close(points.sum(1), torch.ones(2000, dtype=torch.float64))
        distance = (points - region["region"]["centre"]).abs().sum(1)
        if whole:  # uniform: each corner's coordinate has the mean 1/3 and the variance 1/18
            torch.testing.assert_close(points.mean(0), region["region"]["centre"], atol=0.02, rtol=0)
            torch.testing.assert_close(points.var(0), torch.full((3,), 1 / 18).double(), atol=0.005, rtol=0)
        else:
            assert distance.max() < 2 * RADIUS
            assert distance.mean() > RADIUS / 4


def test_the_projection_is_the_nearest_point() -> None:
    points = np.random.default_rng(1).normal(size=(6, 4))
    projected = _onto_simplex(points, 0.7)
    np.testing.assert_allclose(projected, project(points, np.array([0.7]))[0], atol=1e-12)
    np.testing.assert_allclose(projected.sum(1), 0.7)


def test_the_centres_of_many_clients_are_those_of_the_baseline() -> None:
    changes = 3 + np.random.default_rng(3).normal(size=(7, 12)) * np.linspace(0.2, 2, 12)
    found = _spread(changes, ENDPOINTS)
    np.testing.assert_allclose(found, centres(list(changes)), atol=1e-10)
    assert ((found > 0.05).sum(1) > 1).any()  # some are between the corners


def test_fewer_clients_than_endpoints_have_regions_too() -> None:
    assert _spread(np.ones((1, 8)), 3).shape == (1, 3)
    points = _spread(np.random.default_rng(2).normal(size=(2, 8)), 10)
    np.testing.assert_allclose(points.sum(1), 1)
    assert np.abs(points[0] - points[1]).max() > 0.1


def test_who_has_not_taken_part_keeps_the_whole_simplex() -> None:
    play = Play("floco", OPTIONS, absent={1: 2, 2: 2})
    play.round(1)
    play.round(2)
    play.round(3)
    whole = {k: bool(sets_of(m.content)["region"]["whole"].numpy()) for k, m in play.sent.items()}
    assert whole == {0: False, 1: False, 2: True}


def test_the_head_travels_as_endpoints_only() -> None:
    play = Play("floco", OPTIONS)
    for _ in play.rounds():
        for client, reply in play.replied.items():
            assert not set(HEAD) & {*play.uploaded(client), *play.downloaded(client)}
            assert set(sets_of(reply.content)) == {"endpoints"}
            assert sets_of(reply.content)["endpoints"]["fc3.weight"].shape == (3, 3, 5)


def test_a_cohort_trains_as_one_client_after_the_other() -> None:
    options = {**OPTIONS, "whole_rounds": 1}
    alone, together = (Play("floco", options, absent={1: 2}, cohort=cohort, model=norm_mlp) for cohort in (1, 3))
    assert_trains_alike(alone, together)


@pytest.mark.parametrize("stop", [1, 2])
def test_a_run_resumes_from_its_checkpoint_with_the_same_bits(tmp_path: Path, stop: int) -> None:
    whole, resumed = Play("floco", OPTIONS), Play("floco", OPTIONS)
    for server_round in range(1, stop + 1):
        whole.round(server_round)
    whole.save(tmp_path)
    resumed.load(tmp_path, stop)
    for server_round in range(stop + 1, 4):
        assert_close(resumed.round(server_round), whole.round(server_round), 0)
    assert_close(resumed.strategy.state(), whole.strategy.state(), 0)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"endpoints": 0}, "endpoints = 0 must be at least 1"),
        ({"whole_rounds": 0}, "whole_rounds = 0 must be at least 1"),
        ({"radius": 0.0}, "radius = 0.0 must be greater than 0"),
        ({"head": "all"}, "head = 'all' leaves nothing to train in the other layers"),
    ],
)
def test_bad_options_are_named(options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Floco(Mlp(), **options)
