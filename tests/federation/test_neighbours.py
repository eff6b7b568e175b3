"""kNN-Per as an evaluation model: what a run records of it, against scikit-learn."""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.neighbors import KNeighborsClassifier
from torch import Tensor

from fedsim.config import Config
from fedsim.errors import ConfigError
from fedsim.experiment.checkpoints import Checkpoints
from fedsim.experiment.run import prepare
from fedsim.federation.federation import federation_of
from fedsim.models.params import load_state_
from fedsim.results.files import read_rows
from fedsim.results.folder import RunFolder
from fedsim.seeds import rng
from fedsim.strategy.participants import draw_unseen

Play = Callable[..., RunFolder]
Tiny = Callable[..., Config]
MODELS = ["personalised", "global", "knn"]


def run_of(tiny: Tiny, play: Play, name: str = "run", **evaluation: Any) -> dict[tuple[int, str, str, str], float]:
    """Return what the last round of a run has measured, by client, model, split and metric."""
    wanted: Mapping[str, Any] = {"models": MODELS, "on": ["test", "server"], **evaluation}
    folder = play(tiny(evaluation=wanted, unseen=0.3, barriers={"every": 0}), name)
    rows = read_rows(folder.metrics).query("round == 2 and client.notna()")
    keys = zip(rows["client"].astype(int), rows["model"], rows["split"], rows["metric"], strict=True)
    return dict(zip(keys, rows["value"], strict=True))


def test_each_client_mixes_its_model_with_its_own_neighbours(tiny: Tiny, play: Play, tmp_path) -> None:  # type: ignore[no-untyped-def]
    found = run_of(tiny, play)
    config = tiny(unseen=0.3)
    federation, model = federation_of(config), federation_of(config).model()
    load_state_(model, Checkpoints(RunFolder(tmp_path / "run").checkpoints).global_model(2))

    def seen(inputs: Tensor) -> tuple[np.ndarray, np.ndarray]:
        with torch.no_grad():
            hidden = torch.relu(model.fc1(inputs.flatten(1)))
            return model.fc2(hidden).double().softmax(1).numpy(), hidden.double().numpy()

    classes = len(federation.data.dataset.classes)
    for client in range(config.clients):
        data, is_unseen = federation.data.client(client), client in draw_unseen(config.seed, config.clients, 0.3)
        stored, labels = seen(data.train[0])[1], data.train[1].numpy()
        dimensions = stored.shape[1]
        knn = KNeighborsClassifier(min(10, len(labels)), weights=lambda d, n=dimensions: np.exp(-(d**2) / n))
        knn.fit(stored, labels)

        def mixed(inputs: Tensor, weight: float, knn=knn) -> np.ndarray:  # type: ignore[no-untyped-def]
            probabilities, features = seen(inputs)
            shares = np.zeros((len(features), classes))
            shares[:, knn.classes_] = knn.predict_proba(features)
            return np.maximum((1 - weight) * probabilities + weight * shares, 1e-12)

        def loss(part: tuple[Tensor, Tensor], weight: float) -> float:
            chosen = mixed(part[0], weight)[np.arange(len(part[1])), part[1].numpy()]
            return float(-np.log(chosen).mean())

        weights = [step / 10 for step in range(11)]
        best = min(weights, key=lambda weight: loss(data.validation, weight)) if len(data.validation[1]) else 0.5
        parts = {"unseen": data.test} if is_unseen else {"test": data.test, "server": federation.data.test()}
        assert {split for k, model, split, _ in found if k == client and model == "knn"} == set(parts)
        for split, part in parts.items():
            right = (mixed(part[0], best).argmax(1) == part[1].numpy()).mean()
            assert found[client, "knn", split, "loss"] == pytest.approx(loss(part, best), abs=1e-4)
            assert found[client, "knn", split, "accuracy"] == pytest.approx(right)


def test_with_weight_zero_it_is_the_model_and_changes_nothing_else(tiny: Tiny, play: Play) -> None:
    found = run_of(tiny, play, knn_weight=0.0)
    of_knn = {key: value for key, value in found.items() if key[1] == "knn"}
    assert of_knn
    for (client, _, split, metric), value in of_knn.items():
        assert value == pytest.approx(found[client, "personalised", split, metric], abs=1e-6)
    rest = run_of(tiny, play, "plain", models=["personalised", "global"])
    assert {key: value for key, value in found.items() if key[1] != "knn"} == rest


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"evaluation": {"models": MODELS, "knn_neighbours": 0}}, "knn_neighbours = 0: must be at least 1"),
        ({"evaluation": {"models": MODELS, "knn_weight": 1.5}}, r"knn_weight = 1\.5: must be at most 1"),
        (
            {"data": {"name": "tests.federation.test_neighbours:numbers"}, "partition": {"scheme": "iid"}},
            "'knn', in which neighbours name the class of an example, and targets of the task 'regression' have none",
        ),
        ({"strategy": {"name": "fedcp"}}, "'knn', and clients of strategy.name = 'FedCP' evaluate more than the run's"),
    ],
)
def test_bad_settings_and_other_tasks_are_one_line(tiny: Tiny, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        prepare(tiny(**{"evaluation": {"models": MODELS}, "barriers": {"every": 0}} | changes))
    assert "\n" not in str(caught.value)


def numbers() -> Any:
    """Return a data set of numbers to predict."""
    from fedsim.data import Dataset, Examples

    stream = rng(0, "numbers")
    inputs = torch.from_numpy(stream.normal(size=(60, 4))).float()
    part = Examples(inputs, inputs.sum(1))
    return Dataset("numbers", part, part, ())
