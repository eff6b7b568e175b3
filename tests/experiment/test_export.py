"""What is taken out of a run is what was evaluated in it: the global model and each client's, at every kept round."""

import json
import re
import shutil
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from filelock import FileLock
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor, nn

import fedsim
from fedsim.config import Config, choices, with_settings
from fedsim.errors import ConfigError
from fedsim.experiment import run as experiment
from fedsim.experiment.checkpoints import Checkpoints
from fedsim.experiment.export import export_model
from fedsim.experiment.kept_round import _best as best_of
from fedsim.experiment.kept_round import kept_round
from fedsim.experiment.restored import model_of, restored_model
from fedsim.federation import data as data_of_runs
from fedsim.federation.federation import federation_of
from fedsim.results.files import read_rows
from fedsim.results.folder import RunFolder
from fedsim.training.evaluation import evaluate
from strategies import STRATEGIES
from tests.conftest import TINY, Command, run_until, unseal
from tests.strategies.harness import ADAPTED, assert_close
from tests.strategies.test_laws import OPTIONS


class Tied(nn.Module):
    """Two layers with one weight, and a normalisation under two names."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.first, self.norm, self.second = nn.Linear(64, 64), nn.BatchNorm1d(64), nn.Linear(64, 64)
        self.again, self.head = self.norm, nn.Linear(64, classes)
        self.second.weight = self.first.weight

    def forward(self, inputs: Tensor) -> Tensor:
        hidden = torch.tanh(self.norm(self.first(inputs.flatten(1))))
        return self.head(torch.tanh(self.again(self.second(hidden))))


def tied(shape: tuple[int, ...], classes: int) -> nn.Module:
    return Tied(classes)


TIED = {"name": f"{__name__}:tied"}
SETTINGS: dict[str, Any] = {
    "data": {"name": "digits", "train_examples": 130, "test_examples": 30, "server_examples": 10},
    "clients": 4,
    "unseen": 0.2,  # client 1
    "participation": 0.5,
    "local__lr": 0.5,
    "barriers": {"every": 0},
    "checkpoints": {"keep": "all"},
}


def recorded(folder: RunFolder, client: int | None, server_round: int) -> float:
    """Return the loss that a run recorded, read plainly."""
    [loss] = [
        row["value"]
        for row in read_rows(folder.metrics).replace({np.nan: None}).to_dict("records")
        if (row["round"], row["client"], row["metric"]) == (server_round, client, "loss")
        and (row["model"], row["split"])
        in {("global", "test")} | ({("personalised", "test"), ("personalised", "unseen")})
        and (client is None or row["model"] == "personalised")
    ]
    return float(loss)


SLOW = ("pfedme",)
# Fewer than 100 epochs of the weights that begin a client's first round.
FEWER = OPTIONS | {"fedala": {"max_epochs": 11}, "ccvr": {"after": 1}}


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=[pytest.mark.slow] if name in SLOW else [])
        for name in STRATEGIES
        if name not in ADAPTED
    ],
)
def test_a_model_that_is_restored_has_the_loss_that_was_recorded(
    name: str, tiny: Callable[..., Config], play: Callable[..., RunFolder]
) -> None:
    config = tiny(**SETTINGS, strategy={"name": name, **FEWER.get(name, {})})
    folder, data = play(config), federation_of(config).data
    for server_round, client in ((1, 0), (2, 1)):  # client 1 never trains
        model = model_of(kept_round(folder, client, server_round))
        assert not model.training
        assert evaluate(model, *data.client(client).test).loss == pytest.approx(
            recorded(folder, client, server_round), rel=1e-6
        )


CASES: dict[str, dict[str, Any]] = {
    "statistics computed again": {"model": TIED, "strategy": {"name": "layer_set", "buffers": "recompute"}},
    "models that begin differently": {
        "model": {"name": "mlp", "hidden": [12], "initial": "own"},
        **{"strategy": {"name": "layer_set", "shared": "head"}},
    },
    "complex weights": {"model": {"name": "tests.models.tensors:complex_weights"}, "strategy": {"name": "ditto"}},
    "inputs that differ by client": {
        "features": {"skew": "noise"},
        "strategy": {"name": "fedala", "max_epochs": 11},
    },
    "few that are evaluated": {"evaluate_clients": 1, "strategy": {"name": "ditto"}},
    "a cohort": {"engine": {"workers": 1, "cohort": 2}, "strategy": {"name": "ditto"}},
}


@pytest.mark.parametrize("case", CASES)
def test_what_is_exported_loads_strictly_into_plain_torch_and_has_the_recorded_loss(
    case: str, tiny: Callable[..., Config], play: Callable[..., RunFolder], tmp_path: Path
) -> None:
    config = tiny(**SETTINGS | CASES[case])
    folder, data = play(config), federation_of(config).data
    module, _, name = config.model.name.partition(":")
    shape = data.dataset.shape
    plain = getattr(sys.modules[module], name)(shape, 10) if name else federation_of(config).model()
    for server_round, client in ((1, None), (1, 0), (2, 3)):
        path = tmp_path / f"{server_round}-{client}.safetensors"
        export_model(kept_round(folder, client, server_round), path)
        state = load_file(path)
        assert state.keys() == plain.state_dict().keys()
        plain.load_state_dict(state)
        with safe_open(path, "pt") as file:
            said = file.metadata()
        if "loss" not in said:
            assert case == "few that are evaluated"
            continue
        examples = data.test() if client is None else data.client(client).test
        assert evaluate(plain.eval(), *examples).loss == pytest.approx(float(said["loss"]), rel=1e-5)
        assert float(said["loss"]) == recorded(folder, client, server_round)
        assert said["round"] == str(server_round)
        assert said["client"] == ("global" if client is None else str(client))
        assert said["run"].endswith("/run")
        assert said["fedsim"] == fedsim.__version__
        assert json.loads(said["model"])["name"] == config.model.name


@pytest.mark.ray
@pytest.mark.slow
def test_a_model_of_a_run_on_ray_has_the_loss_that_was_recorded(
    tiny: Callable[..., Config], play: Callable[..., RunFolder]
) -> None:
    config = tiny(**SETTINGS | {"engine": {"name": "ray", "workers": 2}}, strategy={"name": "layer_cycle"})
    folder, data = play(config), federation_of(config).data
    for client in (0, 3):
        loss = evaluate(restored_model(folder, client, 1), *data.client(client).test).loss
        assert loss == pytest.approx(recorded(folder, client, 1), rel=1e-6)


@pytest.fixture(scope="module")
def uneven(tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    """Return a run of six rounds that is best in rounds 2 and 1, by accuracy and by loss."""
    changes = {"rounds": 6, "participation": 0.5, "barriers": {"every": 0}, "strategy": {"name": "layer_cycle"}}
    settings = with_settings(TINY | changes, {("local", "lr"): 1.0})
    folder = RunFolder(tmp_path_factory.mktemp("uneven") / "run")
    experiment.run(choices.resolve(Config.parse(settings, "uneven")), folder, lambda summary: None)
    return folder


def test_the_best_round_that_a_comparison_reports_is_the_one_whose_models_are_given(uneven: RunFolder) -> None:
    [run] = fedsim.load(uneven.path)
    for metric, expected in (("accuracy", 2), ("loss", 1)):
        compared = fedsim.compare([run], at="best", metric=metric).table.loc[0]
        assert run.best_round(metric) == expected
        losses = []
        for client in range(4):
            model = run.model(client=client, round="best", metric=metric)
            losses.append(evaluate(model, *federation_of(run.config).data.client(client).test).loss)
            assert losses[-1] == pytest.approx(recorded(uneven, client, expected), rel=1e-6)
        if metric == "loss":
            assert np.mean(losses) == pytest.approx(compared["personalised"], rel=1e-6)
    assert kept_round(uneven).server_round == kept_round(uneven, wanted=np.int64(6)).server_round == 6


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((4,), "client = 4 must be from 0 to 3"),
        ((-1,), "client = -1 must be from 0 to 3"),
        (("3",), "client = '3' must be from 0 to 3"),
        (
            (None, 4),
            "the models of round 4 were not kept, only of rounds 1, 2, 5, 6; to keep",
        ),
        ((None, 7), "round = 7 must be 'last', 'best' or from 1 to 6"),
        ((None, "best", "foo"), "metric = 'foo' must be one of loss, accuracy, .*, accuracy:CLASS"),
        ((None, "best", "rmse"), "has no rmse on validation data; the task has no rmse, choose one of loss, accuracy"),
        ((None, "first"), "round = 'first' must be 'last', 'best' or from 1 to 6"),
    ],
)
def test_a_model_that_is_not_there_is_named_in_one_line(
    uneven: RunFolder, arguments: tuple[Any, ...], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        kept_round(uneven, *arguments)


def test_a_best_round_that_is_not_kept_names_the_setting(tiny: Callable[..., Config], tmp_path: Path) -> None:
    config = tiny(rounds=6, participation=0.5, local__lr=1.0, strategy={"name": "layer_cycle"}, checkpoint_every=3)
    folder = RunFolder(tmp_path / "run")
    with pytest.raises(ConfigError, match=r"has no checkpoint yet"):
        experiment.run(config, folder, lambda summary: kept_round(folder))
    run_until(config, folder, 5)  # a run that is not finished has models too: those of its checkpoint
    assert kept_round(folder).server_round == 3
    with pytest.raises(
        ConfigError, match=r"round 2, the best by validation accuracy, were not kept, only .* round 3; .*'best'"
    ):
        kept_round(folder, wanted="best")


def test_a_run_without_validation_data_has_no_best_round(
    tiny: Callable[..., Config], play: Callable[..., RunFolder]
) -> None:
    folder = play(tiny(rounds=1, partition__validation=0.0))
    with pytest.raises(ConfigError, match="has no values on validation data"):
        kept_round(folder, wanted="best")


def test_a_run_whose_rounds_all_lack_a_client_has_no_best_round(uneven: RunFolder) -> None:
    lacking = pd.DataFrame(
        [{"round": 1, "model": "personalised", "split": "validation", "metric": "loss", "value": None}]
    )
    with pytest.raises(ConfigError, match=r"no round of .* has a validation loss of every client; use 'last'"):
        best_of(uneven, lacking, "loss")


def test_what_its_page_shows_works(
    uneven: RunFolder, tmp_path: Path, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    page = (Path(__file__).parents[2] / "docs" / "export.md").read_text()
    shell, python = (re.findall(rf"```{kind}\n(.*?)```", page, flags=re.DOTALL)[0] for kind in ("sh", "python"))
    monkeypatch.chdir(tmp_path)
    Path("runs/my_experiment").mkdir(parents=True)
    Path("runs/my_experiment/1b61bb63-s0").symlink_to(uneven.path)
    for line in shell.splitlines():
        assert command(*line.split()[1:])[0] == 0
    exec(compile(python, "export.md", "exec"), {})


@pytest.fixture
def arrays(tiny: Callable[..., Config], play: Callable[..., RunFolder], tmp_path: Path) -> tuple[RunFolder, Path]:
    """Return a run on a file of arrays, and that file."""
    stream, path = np.random.default_rng(0), tmp_path / "data.npz"
    targets = np.arange(80) % 3
    inputs = (stream.normal(size=(80, 5)) + targets[:, None]).astype(np.float32)
    np.savez(path, train_inputs=inputs, train_targets=targets, test_inputs=inputs[:9], test_targets=targets[:9])
    return play(tiny(data={"name": "arrays", "path": str(path)}, strategy={"name": "fedprox"})), path


def forget_data() -> None:
    """Forget what this process has read, as another process knows nothing of it."""
    data_of_runs._read.cache_clear()
    data_of_runs._split.cache_clear()


def test_the_global_model_is_exported_without_the_data_and_a_clients_says_that_they_are_gone(
    arrays: tuple[RunFolder, Path], tmp_path: Path
) -> None:
    (folder, data), path = arrays, tmp_path / "model.safetensors"
    export_model(kept_round(folder), path)
    before = load_file(path)
    data.unlink()
    forget_data()
    export_model(kept_round(folder), path)
    assert_close(load_file(path), before, tolerance=0.0)
    before_error = path.read_bytes()
    with pytest.raises(ConfigError, match=r"data.npz' does not exist"):
        export_model(kept_round(folder, 2), path)
    assert path.read_bytes() == before_error


@pytest.mark.parametrize(
    "model",
    [{"name": "mlp", "hidden": [12], "freeze": "fc1"}, {"name": "tests.models.tensors:complex_weights"}],
    ids=["frozen", "complex"],
)
def test_a_model_that_is_not_whole_or_not_plain_in_its_checkpoint_is_not_exported_without_its_data(
    model: dict[str, Any],
    arrays: tuple[RunFolder, Path],
    tiny: Callable[..., Config],
    play: Callable[..., RunFolder],
    tmp_path: Path,
) -> None:
    data = arrays[1]
    folder = play(tiny(data={"name": "arrays", "path": str(data)}, model=model), "other")
    export_model(kept_round(folder), tmp_path / "model.safetensors")
    assert set(load_file(tmp_path / "model.safetensors")) != set(Checkpoints(folder.checkpoints).global_model(2))
    data.unlink()
    forget_data()
    with pytest.raises(ConfigError, match=r"data.npz' does not exist"):
        export_model(kept_round(folder), tmp_path / "other.safetensors")


def test_the_global_model_is_exported_without_the_code_that_it_was_made_by(
    tiny: Callable[..., Config], play: Callable[..., RunFolder], tmp_path: Path
) -> None:
    folder = unseal(play(tiny(rounds=1, model=TIED)))
    folder.config.write_text(folder.config.read_text().replace(TIED["name"], "a_module_that_is_gone:tied"))
    export_model(kept_round(folder), tmp_path / "model.safetensors")
    Tied(10).load_state_dict(load_file(tmp_path / "model.safetensors"))
    with pytest.raises(ConfigError, match="cannot be imported"):
        export_model(kept_round(folder, 1), tmp_path / "client.safetensors")


def test_a_clients_model_whose_data_have_changed_since_is_refused(
    arrays: tuple[RunFolder, Path], tmp_path: Path
) -> None:
    folder, path = arrays
    with np.load(path) as data:
        changed = {name: data[name][::-1] if name == "train_targets" else data[name] for name in data}
    np.savez(path, **changed)
    forget_data()
    with pytest.raises(ConfigError, match=r"client 2 has a loss of \S+ now, and had \S+ in round 2; the data"):
        export_model(kept_round(folder, 2), tmp_path / "model.safetensors")
    assert not (tmp_path / "model.safetensors").exists()


def test_a_model_that_no_longer_fits_its_checkpoint_is_refused(
    tiny: Callable[..., Config], play: Callable[..., RunFolder]
) -> None:
    folder = unseal(play(tiny(rounds=1)))
    folder.config.write_text(re.sub(r"hidden = \[\s*12", "hidden = [13", folder.config.read_text()))
    for client in (None, 1):
        with pytest.raises(ConfigError, match="does not fit the model that its config builds now"):
            restored_model(folder, client)


def test_models_of_a_run_on_a_gpu_are_restored_where_there_is_none(
    tiny: Callable[..., Config], play: Callable[..., RunFolder]
) -> None:
    folder = unseal(play(tiny(rounds=1)))
    folder.config.write_text(folder.config.read_text().replace('device = "auto"', 'device = "cuda:99"'))
    for client in (None, 1):
        assert {value.device.type for value in restored_model(folder, client).parameters()} == {"cpu"}


def test_a_damaged_checkpoint_is_named(tiny: Callable[..., Config], play: Callable[..., RunFolder]) -> None:
    folder = play(tiny(rounds=1))
    next(folder.checkpoints.glob("round-*/global.safetensors")).write_bytes(b"x")
    for client in (None, 1):
        with pytest.raises(ConfigError, match="has 1 bytes, and 3920 were written, and no other models are intact"):
            restored_model(folder, client)


def test_a_checkpoint_that_a_running_run_replaces_meanwhile_is_not_called_damaged(
    tiny: Callable[..., Config], play: Callable[..., RunFolder]
) -> None:
    folder = play(tiny(rounds=1))
    kept = kept_round(folder, None)
    (folder.checkpoints / "round-00001" / "global.safetensors").unlink()
    with pytest.raises(ConfigError, match=r"is damaged .*; run the experiment again"):
        model_of(kept)
    with FileLock(folder.lock), pytest.raises(ConfigError, match=r"is running and replaced .*; give the command again"):
        model_of(kept)


def test_the_command_writes_a_file_once_and_prints_what_it_is(
    uneven: RunFolder, tmp_path: Path, command: Command
) -> None:
    path = tmp_path / "new" / "client.safetensors"
    export = partial(command, "export")

    def refused(*arguments: object) -> str:
        code, _, err = export(*arguments)
        assert code == 2
        return err

    wanted = (uneven.path, "--client", 3, "--round", "best", "--to", path)
    code, out, _ = export(*wanted)
    assert code == 0
    assert out.startswith("personalised model of client 3 after round 2: accuracy ")
    assert f"loss {recorded(uneven, 3, 2):.4f} on its own test data" in out
    before = path.read_bytes()
    assert "exists; give another file, or replace it with --force" in refused(*wanted)
    assert "the models of round 4 were not kept" in refused(uneven.path, "--round", 4, "--to", path, "--force")
    assert path.read_bytes() == before
    assert export(uneven.path, "--to", path, "--force")[0] == 0
    assert load_file(path).keys() == Checkpoints(uneven.checkpoints).global_model(6).keys()
    assert "cannot be written" in refused(uneven.path, "--to", path / "below.safetensors")
    for name in ("one", "two"):
        shutil.copytree(uneven.path, tmp_path / "folder" / name)
    found = refused(tmp_path / "folder", "--to", tmp_path / "a.safetensors")
    assert "holds 2 runs; give one of them, such as" in found
