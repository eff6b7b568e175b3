"""Copies of a model that part: with equal batches they differ by their noise alone, which is as long as it says."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from torch.nn.functional import cross_entropy

from experiments.llfc.spawning import scale_of
from fedsim.config import Config
from fedsim.errors import ConfigError
from fedsim.experiment import run as experiment
from fedsim.experiment.restored import restored_model
from fedsim.federation.federation import federation_of
from fedsim.models.asymmetry import fixed_entries
from fedsim.models.params import Params, load_state_, state_of
from fedsim.results.folder import RunFolder
from fedsim.results.reading import read_result

Play = Callable[..., RunFolder]
STILL = 1e-12  # a step size with which a copy stays where it begins


def spawned(
    tiny: Callable[..., Config], lr: float, order: str = "same", settings: dict[str, Any] | None = None, **options: Any
) -> Config:
    return tiny(
        clients=2,
        partition={"scheme": "copies", "validation": 0.0, "test": 0.2},
        strategy={"name": "experiments.llfc.spawning:Spawning", **options},
        local={"lr": lr, "batch_size": 16 if lr > STILL else 1000, "order": order},
        barriers__every=0,
        **(settings or {}),
    )


def moved(config: Config, folder: RunFolder, client: int) -> tuple[Params, Params]:
    """Return the initial model, and how far a client's model is from it in the end."""
    initial, found = federation_of(config).initial, state_of(restored_model(folder, client))
    return initial, {key: found[key].double() - value.double() for key, value in initial.items()}


def test_copies_without_noise_stay_equal_if_their_batches_are(tiny: Callable[..., Config], play: Play) -> None:
    for order, equal in (("same", True), ("own", False)):
        rows = read_result(play(spawned(tiny, 0.1, order, steps=3), order)).of("personalised", "loss")
        losses = rows.set_index(["round", "client"])["value"].unstack()
        assert losses.loc[1, 0] == losses.loc[1, 1]
        assert (losses.loc[2, 0] == losses.loc[2, 1]) == equal


@pytest.mark.parametrize("chosen", ["all", "fc2"])
def test_gaussian_noise_has_a_share_of_each_layers_length(tiny: Callable[..., Config], play: Play, chosen: str) -> None:
    config = spawned(tiny, STILL, steps=0, noise=0.25, noise_layers=chosen)
    folder = play(config)
    initial, noise = moved(config, folder, 1)
    for layer in ("fc1", "fc2"):
        keys = (f"{layer}.weight", f"{layer}.bias")
        expected = 0.25 * length(initial, keys) if chosen in ("all", layer) else 0.0
        assert length(noise, keys) == pytest.approx(expected, rel=1e-5, abs=1e-8)
    assert length(moved(config, folder, 0)[1], tuple(initial)) < 1e-8


def test_a_batchs_gradient_has_its_direction_and_a_share_of_the_length_of_all_layers(
    tiny: Callable[..., Config], play: Play
) -> None:
    config = spawned(tiny, STILL, steps=0, noise=0.25, noise_kind="gradient")
    initial, noise = moved(config, play(config), 1)
    federation = federation_of(config)
    model = federation.model()
    load_state_(model, initial)
    inputs, targets = federation.data.client(1).train
    cross_entropy(model(inputs), targets).backward()
    slopes = torch.cat([model.get_parameter(key).grad.double().flatten() for key in noise])  # type: ignore[union-attr]
    found = torch.cat([value.flatten() for value in noise.values()])
    expected = -0.25 * length(initial, tuple(initial)) * slopes / slopes.norm()
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-6)


def test_noise_leaves_fixed_entries_of_asymmetric_models_alone(tiny: Callable[..., Config], play: Play) -> None:
    model = {"name": "mlp", "hidden": [12], "asymmetry": {"kind": "w", "fixed": 4}}
    config = spawned(tiny, STILL, steps=0, noise=0.25, settings={"model": model})
    folder, federation = play(config), federation_of(config)
    fixed, noisy = fixed_entries(federation.model()), []
    for path in folder.checkpoints.rglob("*.safetensors"):
        for key, value in load_file(path).items():
            if (own := fixed.get(key.rpartition("/")[2])) is not None and value.shape[-2:] == own.free.shape:
                assert not bool(value[..., own.free == 0].count_nonzero())
                noisy.append(not torch.allclose(value, federation.initial[key.rpartition("/")[2]]))
    assert any(noisy)


def test_a_client_that_fails_in_the_first_round_apart_gets_its_noise_later(
    tiny: Callable[..., Config], play: Play
) -> None:
    faults = {"drop_out": 1.0, "clients": [1], "rounds": [2]}
    config = spawned(tiny, STILL, steps=0, noise=0.25, settings={"rounds": 3, "faults": faults})
    initial, noise = moved(config, play(config), 1)
    for layer in ("fc1", "fc2"):
        keys = (f"{layer}.weight", f"{layer}.bias")
        assert length(noise, keys) == pytest.approx(0.25 * length(initial, keys), rel=1e-5)


@pytest.mark.parametrize("settings", [{"participation": 0.5}, {"unseen": 0.5}])
def test_noise_needs_all_clients_in_every_round(tiny: Callable[..., Config], settings: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=r"noise = 0\.1 reaches copies when .*; use participation = 1 and unseen = 0"):
        experiment.prepare(spawned(tiny, 0.1, settings=settings, noise=0.1))
    experiment.prepare(spawned(tiny, 0.1, settings=settings))


def test_a_direction_without_length_moves_nothing() -> None:
    origin, none = torch.tensor([3.0, 4.0]), torch.zeros(2)
    assert scale_of(origin, none) == 0.0
    assert scale_of(origin, torch.tensor([0.0, 2.0])) == 2.5


def test_no_steps_leave_the_initial_model_to_be_spawned(tiny: Callable[..., Config], play: Play) -> None:
    losses = {
        steps: read_result(play(spawned(tiny, 0.1, steps=steps), str(steps))).on_server("global").iloc[0]
        for steps in (0, 1)
    }
    config = spawned(tiny, 0.1)
    untrained = federation_of(config)
    model = untrained.model().eval()
    load_state_(model, untrained.initial)
    inputs, targets = untrained.data.test()
    accuracy = float((model(inputs).argmax(1) == targets).float().mean())
    assert losses[0] == pytest.approx(accuracy)
    assert losses[1] != losses[0]


def test_unknown_layers_are_refused_before_the_run_starts(tiny: Callable[..., Config]) -> None:
    with pytest.raises(ConfigError, match="layer pattern 'fc9' matches nothing"):
        experiment.prepare(spawned(tiny, 0.1, noise=0.1, noise_layers="fc9"))


def length(params: dict[str, Tensor], keys: tuple[str, ...]) -> float:
    return float(torch.cat([params[key].double().flatten() for key in keys]).norm())
