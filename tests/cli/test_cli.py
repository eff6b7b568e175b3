"""The command line: every mistake is one line that names the value and the remedy, and leaves nothing behind."""

import csv
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from fedsim.config import Config
from fedsim.config.choices import CATALOGUES
from fedsim.config.described import described_tables
from fedsim.data import DATA
from fedsim.data.skews import FEATURES
from fedsim.experiment import run as experiment
from fedsim.experiment.sweep import sweep
from fedsim.models.architectures import MODELS
from fedsim.results.folder import RunFolder
from fedsim.shortening import LINE
from partitions import PARTITIONS
from strategies import NAMES, STRATEGIES
from tests.conftest import TINY, Command


@pytest.fixture
def fedsim(command: Command, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Command:
    """Run a command in an empty folder.

    Without ``--jobs``, runs are played in this process: another would import all again.
    """
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sweep, "processors", lambda: 1)
    return command


@pytest.fixture
def study(tmp_path: Path) -> Path:
    import tomli_w

    path = tmp_path / "study.toml"
    path.write_text(tomli_w.dumps(TINY))
    return path


@pytest.mark.parametrize("arguments", [["rnu"], ["run", "x.toml", "--enginee", "ray"]])
def test_a_hint_is_given_once(arguments: list[str], fedsim: Command) -> None:
    code, _, err = fedsim(*arguments)
    assert (code, err.lower().count("did you mean"), err.count("\n")) == (2, 1, 1)


MISTAKES = {
    "unknown key": (["--set", "local.learning_rate=0.1"], "unknown key 'local.learning_rate'; .*known are: .*lr"),
    "misspelt key": (["--set", "local.epoch=1"], "unknown key 'local.epoch'; did you mean 'epochs'"),
    "misspelt table": (["--set", "barrier.every=1"], "unknown key 'barrier'; did you mean 'barriers'"),
    "unknown option": (
        ["--set", "partition.alfa=1"],
        "unknown key 'partition.alfa' for 'dirichlet'; did you mean 'alpha'",
    ),
    "batch norm on single examples": (
        ["--set", 'model={name="vgg11", norm="batch"}', "--set", "local.batch_size=1"],
        r"'vgg11' cannot be trained on one example \(Expected more than 1 value.*\): local.batch_size = 1 "
        "gives such batches; use a larger one, or a model without batch normalisation",
    ),
    "batch norm and a client with one example": (
        ["--set", 'model={name="vgg11", norm="batch"}', "--set", "clients=80", "--set", 'partition={scheme="iid"}'],
        "Expected more than 1 value.*: client 0 and 79 more have only one; use fewer clients",
    ),
    "misspelt option": (
        ["--set", 'partition={scheme="dirichlet", aplha=1.0}'],
        "unknown key 'partition.aplha' for 'dirichlet'; did you mean 'alpha'",
    ),
    "no list": (["--set", "model.hidden=3"], r"model.hidden = 3: must be a list, such as \[3\]"),
    "too short a list": (["--set", 'data={name="toy", shape=[3, 16]}'], "data.shape.2 = .*must have more values"),
    "missing option": (["--set", 'partition={scheme="dirichlet"}'], "'partition.alpha' is missing"),
    "wrong type": (["--set", 'rounds="ten"'], 'rounds = "ten": .*valid integer'),
    "no bool for a number": (["--set", "clients=true"], "clients = true: .*valid integer"),
    "wrong type of an option": (["--set", 'partition.alpha="low"'], 'partition.alpha = "low": .*valid number'),
    "out of range": (["--set", "local.lr=-1.0"], "local.lr = -1.0: .*greater than 0"),
    "participation": (["--set", "participation=0.0"], "participation = 0.0: .*greater than 0"),
    "option out of range": (["--set", "partition.alpha=0.0"], r"\[partition\] alpha = 0.0 must be greater than 0"),
    "device": (["--set", 'device="gpu"'], 'device = "gpu": must be'),
    "unknown strategy": (["--set", 'strategy.name="fulll"'], "strategy.name = 'fulll' is unknown; did you mean 'full'"),
    "unknown partition": (["--set", 'partition.scheme="dirichelt"'], "did you mean 'dirichlet'"),
    "unknown model": (["--set", 'model={name="resnet81"}'], "did you mean 'resnet18'"),
    "unknown data": (["--set", 'data.name="fashion-mnits"'], "did you mean 'fashion-mnist'"),
    "own strategy that is not there": (["--set", 'strategy.name="nowhere:Mine"'], "'nowhere:Mine' cannot be imported"),
    "layer pattern": (
        ["--set", 'strategy={name="layer_set", shared="hed*"}'],
        r"layer pattern 'hed\*' matches nothing; layers are: fc1, fc2",
    ),
    "layer group of the barriers": (["--set", 'barriers.groups=["ful"]'], "'ful' matches nothing; layers are"),
    "no normalisation for a name in the literature": (
        ["--set", "strategy.name=Fed BN"],
        r"\[strategy\] FedBN, which is layer_set .*no normalisation that trains; choose one that",
    ),
    "a method by its name in the literature": (
        ["--set", "strategy.name=fedex_lora"],
        r"\[strategy\] FedEx-LoRA: the model has no factors of LoRA",
    ),
    "no normalisation": (["--set", 'strategy={name="layer_set", shared="!norm"}'], "'norm' matches nothing"),
    "more clients than examples": (["--set", "clients=201"], "clients = 201 is more than the 200 training examples"),
    "clients that cannot be filled": (["--set", "clients=50"], "50 clients with at least 10 examples each need 500"),
    "more examples than there are": (
        ["--set", "data.train_examples=9999"],
        "9999 is more than the 1442 examples",
    ),
    "how often barriers": (["--set", "barriers.every=-1"], 'every = -1: must be "auto" or a whole number'),
    "a window too wide": (["--set", 'barriers.groups=["windows:9"]'], "a window must have from 1 to 2 layers"),
    "barriers between": (["--set", "barriers.ts=[0.5, 2.0]"], "at most 1"),
    "unknown measurement": (["--set", 'barriers.measures=["distance"]'], "'distances', 'robustness'"),
    "nothing left to train on": (["--set", "partition.test=0.95"], "must add up to less than 1"),
    "sweep with a mistake": (["--set", "sweep.rounds=[1, 0]"], "rounds = 0: .*at least 1"),
    "sweep of nothing": (["--set", "sweep.rounds=[]"], "at least one value"),
    "no value": (["--set", "rounds"], "must be KEY=VALUE"),
    "engine": (["--engine", "cloud"], "cloud"),
    "no job": (["--jobs", "0"], "--jobs.*: 0 is not in the range x>=1"),
    "deadline": (["--set", "engine.deadline=0.0"], "engine.deadline = 0.0: .*greater than 0"),
    "cohort": (["--set", 'engine.cohort="all"'], 'engine.cohort = "all": must be "auto" or a whole number'),
    "a model that is no cohort": (
        ["--set", "engine.cohort=4", "--set", 'data={name="toy-text"}', "--set", 'model={name="char-lstm"}'],
        "engine.cohort = 4: .*lstm.*; use 1",
    ),
    "jobs on ray": (["--engine", "ray", "--jobs", "2"], "--jobs 2 must be 1 with engine.name = 'ray'"),
    "the same run twice": (["--set", "sweep.seed=[1, 1]"], "1 and 2 are both FedAvg seed 1 .*: the same run"),
    "the same run twice, dry": (
        ["--dry-run", "--set", "sweep.seed=[1, 1]"],
        "1 and 2 are both FedAvg seed 1 .*: the same run",
    ),
    "sweep of the engine": (["--set", 'sweep."engine.name"=["local", "ray"]'], "'engine.name' cannot be swept"),
    "misspelt key of a grid": (
        ["--set", 'tune."local.rl"=[0.1]'],
        r"\[tune\]: unknown key 'local.rl'; known are: .*lr",
    ),
    "empty grid": (["--set", 'tune."local.lr"=[]'], r"tune.local.lr = \[\]: must have at least one value"),
    "no grid": (["--set", "tune.rounds=3"], r"\[tune\] has no setting to choose"),
    "a value twice": (["--set", 'tune."local.lr"=[0.1, 0.2, 0.1]'], "holds a value twice"),
    "tuned and swept": (
        ["--set", 'tune."local.lr"=[0.1]', "--set", 'sweep."local.lr"=[0.1]'],
        "'local.lr' is in .sweep. too; remove it from one of them",
    ),
    "tuned partition": (
        ["--set", 'tune."partition.alpha"=[0.1]'],
        "'partition.alpha' cannot be tuned, because it changes what",
    ),
    "tuned without validation": (
        ["--set", 'tune."local.lr"=[0.1]', "--set", "partition.validation=0.0"],
        "partition.validation = 0 must be greater",
    ),
    "rounds of tuning": (
        ["--set", 'tune={"local.lr"=[0.1], rounds=0}'],
        "tune.rounds = 0: .*at least 1",
    ),
    "misspelt key of a sweep": (["--set", 'sweep."local.rl"=[0.1]'], r"\[sweep\]: unknown key 'local.rl'"),
    "a table that is none": (["--set", 'strategy="full"'], 'strategy = "full": must be a table'),
    "code of Python": (["--set", 'data.name="os:getcwd"'], "is code of Python's 'os', which no experiment may call"),
    "a path as a name": (["--set", 'data.name="../../x:y"'], "must be a module and what is in it, such as"),
    "GPUs that are not there": (["--engine", "ray", "--set", "engine.gpus_per_worker=1.0"], "has no GPU"),
    "data folder without data": (
        ["--set", 'data={name="fashion-mnist", data_dir="."}'],
        "does not hold fashion-mnist; give the folder",
    ),
    "option of another data set": (["--set", 'data.data_dir="."'], "unknown key 'data.data_dir' for 'digits'"),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_is_one_line_and_leaves_nothing_behind(
    name: str, fedsim: Command, study: Path, tmp_path: Path
) -> None:
    arguments, message = MISTAKES[name]
    code, out, err = fedsim("run", str(study), *arguments)
    assert code == 2
    assert out == ""
    assert re.search(message, re.sub(r"[│\s]+", " ", err))
    assert err.startswith("fedsim: error: ")
    assert err.count("\n") == 1
    assert len(err) <= LINE + 1
    assert [path.name for path in tmp_path.iterdir()] == ["study.toml"]


def test_a_truncated_data_file_is_named_before_anything_is_written(
    fedsim: Command, study: Path, tmp_path: Path
) -> None:
    for name in ("train-images-idx3", "train-labels-idx1", "t10k-images-idx3", "t10k-labels-idx1"):
        (tmp_path / f"{name}-ubyte").write_bytes(b"\0\0\x08")
    code, _, err = fedsim("run", str(study), "--set", f'data={{name="fashion-mnist", data_dir="{tmp_path}"}}')
    assert code == 2
    assert re.search("train-images-idx3-ubyte starts with bytes", err)
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize("dry", [[], ["--dry-run"]])
def test_a_folder_that_cannot_be_written_is_named(dry: list[str], fedsim: Command, study: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    code, _, err = fedsim("run", str(study), "--out", "file", *dry)
    assert code == 2
    assert re.search("run folder file/study/.* cannot be written.*--out", err)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "missing.toml cannot be read: No such file"),
        ("rounds = ", "is not TOML"),
        ("rounds = 1", "'clients' is missing"),
    ],
)
def test_an_experiment_that_cannot_be_read(fedsim: Command, tmp_path: Path, content: str | None, message: str) -> None:
    if content is not None:
        (tmp_path / "missing.toml").write_text(content)
    code, _, err = fedsim("run", "missing.toml")
    assert code == 2
    assert message in err


@pytest.mark.parametrize("name", ["compare", "report"])
def test_a_folder_without_runs_is_named(fedsim: Command, name: str) -> None:
    code, _, err = fedsim(name, ".")
    assert code == 2
    assert ". holds no run" in err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["compare", "nope"], "nope does not exist; give run folders"),
        (["compare", "runs"], "runs holds no run; give one in it, such as runs/study"),
        (["report", "study.toml"], "study.toml holds no run; give run folders"),
        (["table", "runs", "--csv", "--out", "t.md"], "--csv and --out t.md are two formats; give one of them"),
        (["compare", "runs", "--csv", "runs"], "--csv runs is a folder; give a file"),
        (["compare", "runs", "--csv", "a", "--latex", "./a"], "--csv and --latex are both a; give two files"),
        (["compare", "runs", "--out", "study.toml"], r"folder study.toml cannot be written \(it is a file\); .* --out"),
        (["report", "runs", "--out", "study.toml/a"], "folder study.toml cannot be written"),
        (["partition", "study.toml", "--save", "a.npz"], "--save a.npz is a folder; give a file"),
        (["partition", "study.toml", "--pfllib", "study.toml"], "another with --pfllib"),
        (
            ["barriers", "a.pt", "b.pt", "--model", "mlp", "--data", "digits", "--out", "study.toml"],
            "folder study.toml cannot be written",
        ),
        (["barriers", "a.pt", "b.pt", "--model", "mlp", "--data", "digits", "--seed", "-1"], "'--seed': -1 is not in"),
    ],
)
def test_paths_are_checked_before_any_work(
    fedsim: Command, study: Path, tmp_path: Path, arguments: list[str], message: str
) -> None:
    (tmp_path / "runs" / "study" / "one-s0").mkdir(parents=True)
    (tmp_path / "runs" / "study" / "one-s0" / "config.toml").touch()
    (tmp_path / "a.npz").mkdir()
    code, out, err = fedsim(*arguments)
    assert (code, out) == (2, "")
    assert re.search(message, err)
    assert err.count("\n") == 1


@pytest.mark.slow
def test_run_compare_and_report_a_sweep(fedsim: Command, study: Path, tmp_path: Path) -> None:
    swept = 'sweep.strategy=[{name="full"}, {name="layer_set", shared="head"}]'
    run = ("run", str(study), "--set", swept, "--set", "sweep.seed=[0, 1]", "--set", "barriers.every=0")
    code, out, err = fedsim(*run)
    assert code == 0
    assert len(list((tmp_path / "runs" / "study").glob("*/DONE"))) == 4
    assert len(list((tmp_path / "runs" / "study").glob("*/report.html"))) == 4
    assert err.count("round ") == 8
    lines = [line.split() for line in out.splitlines() if line.startswith((" FedAvg ", " LG-FedAvg "))]
    assert [line[:3] for line in lines] == [["FedAvg", "2", "2"], ["LG-FedAvg", "2", "2"]]

    code, _, err = fedsim(*run)
    assert code == 0
    assert err.count("done already, skipped") == 4

    code, table, _ = fedsim("table", "runs/study", "--latex", "--spread", "interval")
    assert code == 0
    assert [line.split(" & ")[0] for line in table.splitlines()[-5:-2]] == [r"\midrule", "FedAvg", "LG-FedAvg"]
    code, _, err = fedsim("table", "runs/study", "--out", "table.md")
    assert (code, (tmp_path / "table.md").read_text().count("\n| ")) == (0, 3)
    code, nothing, err = fedsim("table", "runs/study", "--out", "table.txt")
    assert (code, nothing, err.count("\n")) == (2, "", 1)

    code, again, err = fedsim("compare", "runs/study")
    assert code == 0
    assert again == out
    assert "report: runs/study/report.html" in err
    page = (tmp_path / "runs" / "study" / "report.html").read_text()
    assert page.count('<div class="chart"') >= 3
    titles = ("Last round", "Best round on validation data", "At equal cost")
    assert [page.count(f"<h2>{title}</h2>") for title in titles] == [1, 1, 1]
    assert "default-src 'none'" in page  # so that nothing is asked for

    asked = ("--by", "strategy.name", "--metric", "loss", "--at", "best", "--baseline", "strategy.name=full")
    tables = ("--csv", "tables/a.csv", "--markdown", "tables/a.md", "--latex", "tables/a.tex")
    code, by_name, err = fedsim("compare", "runs/study", *asked, *tables)
    assert code == 0
    assert "strategy.name=LG-FedAvg" in by_name
    assert "vs FedAvg" in by_name
    assert [line for line in err.splitlines() if line.startswith("table: ")] == [
        f"table: {path}" for path in tables[1::2]
    ]
    lines = list(csv.DictReader((tmp_path / "tables/a.csv").read_text().splitlines()))
    assert [(line["strategy"], line["at"], line["seeds"]) for line in lines] == [
        ("strategy.name=FedAvg", "best", "2"),
        ("strategy.name=LG-FedAvg", "best", "2"),
    ]

    code, _, err = fedsim("compare", "runs/study", "--latex", "study.toml/a.tex")
    assert code == 2
    assert "folder study.toml cannot be written" in err
    assert "--latex" in err

    code, _, err = fedsim("compare", "runs/study", "--by", "strategy.nam")
    assert code == 2
    assert "'strategy.nam' is not a setting" in err

    code, _, _ = fedsim("report", "runs/study", "--out", "paper")
    assert code == 0
    assert {path.suffix for path in (tmp_path / "paper").iterdir()} == {".html", ".pdf", ".png"}


RAISES = """
from fedsim.errors import ConfigError, RunError
from fedsim.strategy import Strategy

class Raises(Strategy):
    def __init__(self, model, error: str, **settings):
        super().__init__(model, **settings)
        self.error = error

    def aggregate(self, server_round, updates):
        raise {"config": ConfigError("mend me"), "run": RunError("came to nothing")}[self.error]
"""


@pytest.mark.usefixtures("plain_pages")
@pytest.mark.slow
@pytest.mark.parametrize(("error", "code"), [("config", 2), ("run", 1)])
@pytest.mark.parametrize("jobs", ["1", "2"])
def test_failed_runs_are_listed_below_the_table_of_those_that_are_done(
    fedsim: Command, study: Path, tmp_path: Path, error: str, code: int, jobs: str
) -> None:
    (tmp_path / "raises.py").write_text(RAISES)
    sweep = f'sweep.strategy=[{{name="raises:Raises", error="{error}"}}, {{name="full"}}]'
    got, out, err = fedsim("run", str(study), "--set", sweep, "--set", "barriers.every=0", "--jobs", jobs)
    assert got == code
    assert [line.split()[0] for line in out.splitlines() if line[:5] in (" FedA", " rais")] == ["FedAvg"]
    message = {"config": "mend me", "run": "came to nothing"}[error]
    assert err.splitlines()[-3:] == [
        "runs: runs/study",
        "fedsim: error: 1 of 2 runs failed; rerun the same command to retry",
        f"fedsim: error: raises:Raises(error={error}) seed 0: {message}",
    ]


def test_a_dry_run_says_what_it_would_do_and_does_nothing(fedsim: Command, study: Path, tmp_path: Path) -> None:
    code, out, _ = fedsim("run", str(study), "--dry-run", "--set", "barriers.pairs=0")
    assert code == 0
    assert [path.name for path in tmp_path.iterdir()] == ["study.toml"]
    assert out.startswith(f"{study}: 1 run of 2 rounds, in runs/study\n")
    assert "\nlocal.lr = 0.1\n" in out
    assert "momentum" not in out
    assert len(out.splitlines()) <= 64
    # fc1 has 64 x 12 weights and 12 biases of 4 bytes, fc2 12 x 10 and 10.
    assert re.search(r"fc1 +linear +3,120 bytes", out)
    assert "4 clients send 3,640 bytes each: fc1, fc2" in out
    # 4 own models, the average, and 4 times 2 layers; 40 examples; one round of two. fc1 is computed 5 times only, so
    # that of the 768 + 120 products of a pass 5 * 768 + 13 * 120 are left: 40 * 5400 / 888.
    assert "243 forward passes of one example, instead of 520" in out
    assert re.search(r"client 3: +\d+ examples \| +\d+", out)
    assert re.search(r"total variation +0\.\d+", out)
    code, verbose, _ = fedsim("run", str(study), "--dry-run", "--set", "barriers.pairs=0", "-v")
    assert code == 0
    assert verbose.partition("\n\n")[0].rpartition("\n")[0] == out.partition("\n\n")[0].rpartition("\n")[0]
    assert "\nmomentum = 0.0\n" in verbose
    code, _, err = fedsim("run", str(study), "-q", "--verbose")
    assert (code, err) == (2, "fedsim: error: --verbose and --quiet exclude each other; give one of them\n")


@pytest.mark.slow
def test_partition_prints_and_draws_who_holds_what_and_trains_nothing(
    fedsim: Command, study: Path, tmp_path: Path
) -> None:
    code, out, err = fedsim("partition", str(study), "--set", "sweep={seed=[0, 1]}", "--set", 'strategy={name="full"}')
    assert code == 0
    assert out.count("client 3:") == 2
    figures = sorted(path.name for path in (tmp_path / "runs/study").iterdir())
    assert [re.sub(r"-\w{8}-", "-", name) for name in figures] == [
        f"partition-s{seed}.{kind}" for seed in (0, 1) for kind in ("pdf", "png")
    ]
    assert all(name in err for name in figures if name.endswith("png"))


@pytest.mark.usefixtures("plain_pages")
@pytest.mark.slow
def test_a_run_with_a_saved_partition_is_that_run_again(fedsim: Command, study: Path, tmp_path: Path) -> None:
    code, _, err = fedsim("partition", str(study), "--save", "sets/split.npz", "--pfllib", "pfllib")
    assert code == 0
    assert "index sets: sets/split.npz" in err
    assert len(list((tmp_path / "pfllib/train").iterdir())) == 4
    plain = study.read_text()
    study.write_text(re.sub(r"train_examples = \d+\n", "", plain))
    saved = 'partition={scheme="saved", path="sets/split.npz"}'
    assert fedsim("run", str(study), "--set", saved, "--out", "again")[0] == 0
    study.write_text(plain)
    assert fedsim("run", str(study))[0] == 0
    first, again = (next((tmp_path / name).glob("study/*-s*/metrics.jsonl")).read_text() for name in ("runs", "again"))
    assert first == again


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--save", "split.txt"), "--save split.txt: the file's name must end in .npz"),
        (("--save", "a.npz", "--set", "sweep={seed=[0, 1]}"), "has 2 partitions and a file holds one"),
        (("--save", "study.toml/a.npz"), "folder study.toml cannot be written"),
    ],
)
def test_a_partition_that_cannot_be_saved_is_one_line(
    fedsim: Command, study: Path, arguments: tuple[str, ...], message: str
) -> None:
    code, _, err = fedsim("partition", str(study), *arguments)
    assert code == 2
    assert message in re.sub(r"[│\s]+", " ", err)


@pytest.mark.parametrize(
    ("kind", "names"),
    [
        ("strategies", STRATEGIES),
        ("partitions", PARTITIONS),
        ("features", FEATURES),
        ("models", MODELS),
        ("data", DATA),
    ],
)
def test_list_shows_everything_that_is_registered(fedsim: Command, kind: str, names: dict) -> None:
    code, out, _ = fedsim("list", kind)
    assert code == 0
    shown = [line.split()[0] for line in out.splitlines() if line.strip()]
    assert {CATALOGUES[kind].canonical(name) for name in shown} >= set(names)
    assert kind != "strategies" or set(NAMES) <= set(shown)


def test_list_settings_shows_every_key_by_its_table_and_by_its_name(fedsim: Command) -> None:
    code, tables, _ = fedsim("list", "settings")
    assert code == 0
    shown = "".join(fedsim("list", "settings", name)[1] for name in described_tables())
    for name, table in described_tables().items():
        assert f" {name} " in tables
        assert all(f"{key.key} " in shown for key in table.keys)
    assert fedsim("list", "settings", "lr")[1] == (
        "local.lr = 0.05: number, greater than 0\n    Step size, as in torch.optim.\n"
    )
    assert "fedsim list models NAME" in fedsim("list", "settings", "model")[1]
    code, _, error = fedsim("list", "settings", "local.rl")
    assert code == 2
    assert "no table and no key is called 'local.rl'; did you mean 'local.lr'? tables are: top, data" in error


OWN = """
from fedsim.strategy import Strategy

class Mine(Strategy):
    \"\"\"Share the first layers.\"\"\"

    def __init__(self, model, depth: int = 1, **settings):
        super().__init__(model, **settings)
        self._group = self.layers.group(f"first:{depth}")

    def shared(self, server_round):
        return self._group
"""


@pytest.mark.usefixtures("plain_pages")
@pytest.mark.slow
def test_a_strategy_of_the_user_is_one_file_in_this_folder(fedsim: Command, study: Path, tmp_path: Path) -> None:
    (tmp_path / "own_strategy.py").write_text(OWN)
    choice = 'strategy={name="own_strategy:Mine", depth=1}'
    code, out, _ = fedsim("run", str(study), "--set", choice)
    assert code == 0
    assert "own_strategy:Mine" in out
    code, _, err = fedsim("run", str(study), "--set", 'strategy={name="own_strategy:Mine", depht=1}')
    assert code == 2
    assert "did you mean 'depth'" in err


@pytest.mark.ray(alone=True)
@pytest.mark.slow
def test_the_ray_engine_starts_by_itself_from_the_command_line(study: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "fedsim", "run", str(study), "--engine", "ray", "--out", str(tmp_path / "out")]
    run = subprocess.run(command, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    assert "Warning" not in run.stderr
    assert len(list((tmp_path / "out").glob("*/*/DONE"))) == 1


MINE = """
import torch
from torch import nn
from fedsim.strategy import Strategy

class SharesText(Strategy):
    def shared(self, server_round):
        return "body"

class TakesNothing(Strategy):
    def __init__(self, model):
        super().__init__(model)

class AveragesNothing(Strategy):
    def aggregate(self, server_round, updates):
        return None

class AveragesToNan(Strategy):
    def aggregate(self, server_round, updates):
        return {key: value * float("nan") for key, value in updates[0].shared.items()}

def no_strategy(model, **settings):
    return 3

def four_classes(shape, classes):
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 4))

def no_flatten(shape, classes):
    return nn.Sequential(nn.Linear(64, classes))

def text(shape, classes):
    return "model"

def raises(shape, classes):
    return nn.Linear(shape[7], classes)

class Asserts(nn.Module):
    def __init__(self, shape, classes):
        super().__init__()
        self.fc = nn.Linear(64, classes)

    def forward(self, x):
        assert x.ndim == 2
        return self.fc(x)

class PairInTraining(nn.Module):
    def __init__(self, shape, classes):
        super().__init__()
        self.fc = nn.Linear(64, classes)

    def forward(self, x):
        outputs = self.fc(x.flatten(1))
        return (outputs, x) if self.training else outputs

def crops(inputs, client, clients, rng):
    return inputs[:, :, :4] if client else inputs[:, :, 4:]

def wants_two(inputs, client, /):
    return inputs

def no_data():
    return [1, 2]

def bad_labels():
    import torch
    from fedsim.data import Dataset, Examples
    examples = Examples(torch.zeros(20, 1, 8, 8), torch.arange(20))
    return Dataset("bad", examples, examples, ("a", "b"))
"""


@pytest.mark.usefixtures("plain_pages")
@pytest.mark.parametrize(
    ("table", "name", "code", "message"),
    [
        ("strategy", "SharesText", 2, "returns 'body'; it must be a group of the model's layers"),
        ("strategy", "TakesNothing", 2, "unexpected keyword argument 'inputs'"),
        ("strategy", "no_strategy", 2, "must be a subclass of fedsim.strategy.Strategy, not a function"),
        ("strategy", "AveragesNothing", 1, "AveragesNothing.aggregate returns a NoneType"),
        (
            "strategy",
            "AveragesToNan",
            1,
            "AveragesToNan.aggregate returns 'fc1.weight' with values that are not finite",
        ),
        ("model", "four_classes", 2, r"maps 2 inputs to shape \(2, 4\); it must be \(2, 10\)"),
        ("model", "no_flatten", 2, r"does not accept inputs of shape \(1, 8, 8\) of 'digits'"),
        ("model", "text", 2, "gives a str; it must be a torch.nn.Module"),
        ("model", "raises", 2, r"'mine_raises:raises': IndexError: .* \(mine_raises.py, line 35\)$"),
        ("model", "Asserts", 2, r"does not accept inputs of .*: AssertionError \(mine_asserts.py, line 43\)$"),
        ("model", "PairInTraining", 2, "trained on 2 examples, maps 2 inputs to a tuple"),
        ("features", "crops", 2, r"into torch.float32 \(\d+, 1, 4, 8\); it must keep type and shape"),
        ("features", "wants_two", 2, "cannot be called with inputs, client, clients, rng"),
        ("data", "no_data", 2, r"its train set is an int; give one with __len__"),
        ("data", "bad_labels", 2, "'bad': its training set has the label 19; labels must be from 0 to 1"),
    ],
)
def test_a_mistake_in_a_part_of_the_user_is_one_line(
    fedsim: Command, study: Path, tmp_path: Path, table: str, name: str, code: int, message: str
) -> None:
    module = f"mine_{name.lower()}"
    (tmp_path / f"{module}.py").write_text(MINE)
    key = CATALOGUES[next(kind for kind, each in CATALOGUES.items() if each.table == table)].key
    got, _, err = fedsim("run", str(study), "--set", f'{table}={{{key}="{module}:{name}"}}')
    assert got == code
    assert re.search(message, err)
    assert err.splitlines()[-1].startswith("fedsim: error: ")
    assert (tmp_path / "runs").exists() == (code == 1)


@pytest.mark.usefixtures("plain_pages")
@pytest.mark.slow
def test_a_changed_strategy_of_the_user_is_another_run(fedsim: Command, study: Path, tmp_path: Path) -> None:
    path = tmp_path / "changing.py"
    for depth in ("first:1", "first:2"):
        path.write_text(OWN.replace('f"first:{depth}"', f'"{depth}"'))
        assert fedsim("run", str(study), "--set", 'strategy={name="changing:Mine"}')[0] == 0
    assert len(list(tmp_path.glob("runs/study/*/DONE"))) == 2


@pytest.mark.usefixtures("plain_pages")
@pytest.mark.slow
def test_a_sweep_over_a_table_and_one_of_its_settings_plays_every_combination(
    fedsim: Command, study: Path, tmp_path: Path
) -> None:
    sweep = 'sweep={"strategy.buffers"=["shared", "personal"], strategy=[{name="full"}, {name="local"}]}'
    code, out, _ = fedsim("run", str(study), "--set", sweep)
    assert code == 0
    assert "FedAvg(buffers=personal)" in out
    assert len(list(tmp_path.glob("runs/study/*/DONE"))) == 4


@pytest.mark.usefixtures("plain_pages")
@pytest.mark.slow
def test_a_setting_on_the_command_line_overrules_the_sweep(fedsim: Command, study: Path, tmp_path: Path) -> None:
    study.write_text(study.read_text() + "\n[sweep]\nseed = [0, 1]\n")
    assert fedsim("run", str(study), "--set", "seed=5")[0] == 0
    assert [path.parent.name[-3:] for path in tmp_path.glob("runs/study/*/DONE")] == ["-s5"]


@pytest.mark.slow
def test_a_report_says_that_its_run_is_unfinished(
    fedsim: Command, tiny: Callable[..., Config], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    experiment.run(tiny(barriers__every=0), RunFolder(tmp_path / "one"), lambda summary: None, until=1)
    assert fedsim("report", "one")[0] == 0
    warnings = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert warnings == ["unfinished: one (round 1 of 2); resume it with 'fedsim run'"]


@pytest.mark.usefixtures("plain_pages")
@pytest.mark.slow
def test_a_damaged_run_is_named_and_an_unfinished_one_left_out(
    fedsim: Command, study: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    assert fedsim("run", str(study), "--set", "sweep.seed=[0, 1]")[0] == 0
    first, second = sorted(path.parent for path in tmp_path.glob("runs/study/*/DONE"))
    for path in (first / "DONE", first / "seals.jsonl", *first.glob("*ion.jsonl"), *first.glob("[mt]*.jsonl")):
        path.unlink()
    shutil.rmtree(first / "checkpoints")  # it has just begun
    code, out, err = fedsim("compare", "runs/study")
    assert code == 0
    assert "has no evaluated round yet" in caplog.text
    assert len([line for line in out.splitlines() if line.startswith(" FedAvg ")]) == 1
    (second / "metrics.jsonl").write_text("no json\n")
    code, _, err = fedsim("compare", str(second))
    assert code == 2
    assert "metrics.jsonl has 8 bytes, and " in err
    (second / "metrics.jsonl").unlink()
    code, _, err = fedsim("run", str(study), "--set", "seed=1")
    assert code == 2
    assert "metrics.jsonl is missing; remove the run's folder and run it again" in err
    (second / "DONE").unlink()
    next((second / "checkpoints").glob("round-*/global.safetensors")).write_bytes(b"x")
    code, _, err = fedsim("run", str(study), "--set", "seed=1")
    assert code == 2
    assert "global.safetensors has 1 bytes, and " in err


@pytest.fixture
def played(tmp_path: Path, tiny: Callable[..., Config], play: Callable[..., RunFolder]) -> Path:
    return play(tiny(rounds=1, clients=2, barriers={"every": 0})).path


def test_a_figure_is_written_by_its_suffix(played: Path, fedsim: Command) -> None:
    for suffix, start in ((".pdf", b"%PDF"), (".PNG", b"\x89PNG"), (".svg", b"<?xml")):
        code, _, err = fedsim("figure", "clients", str(played), "--out", f"new/a{suffix}")
        assert (code, err) == (0, f"figure: new/a{suffix}\n")
        assert Path(f"new/a{suffix}").read_bytes().startswith(start)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["strp", "--out", "a.pdf"], "'strp' is not one of 'curves', 'clients', 'barriers', 'strip'"),
        (["strip", "--out", "a.pdf"], "no barriers were measured in FedAvg; set [barriers] every, and run again"),
        (["barriers", "--out", "a.pdf"], "no barriers were measured in FedAvg"),
        (["curves", "--out", "a.tex"], "--out a.tex: the file's name must end in .pdf, .png or .svg"),
        (["curves", "--out", "a"], "must end in"),
        (["curves", "--out", "a.pdf", "--width", "3"], "'3' is not one of 'column', 'page'"),
        (["curves", "--out", "a.pdf", "--facet", "alpha"], "did you mean 'partition.alpha'"),
        (["curves", "--out", "a.pdf", "--metric", "acuracy"], "--metric 'acuracy' must be one of"),
        (["curves", "--out", "a.pdf", "--metric", "auroc"], "no run has measured it"),
    ],
)
def test_a_figure_that_cannot_be_drawn_is_one_line_and_no_file(
    arguments: list[str], message: str, played: Path, fedsim: Command
) -> None:
    code, _, err = fedsim("figure", arguments[0], str(played), *arguments[1:])
    assert (code, err.count("\n")) == (2, 1)
    assert message in err
    assert not list(Path().glob("a*"))
