"""Help, mistakes and lists come at once: nothing heavy is imported for them."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from fedsim.analysis.mixing.names import KINDS
from fedsim.cli.commands import app

HEAVY = ("torch", "torchvision", "flwr", "ray", "scipy", "sklearn", "pandas", "pyarrow", "matplotlib", "jinja2")
RUN = ("run", "study.toml")
STUDY = 'rounds = 1\nclients = 2\n[partition]\nscheme = "iid"\n'
# A command, its exit code, and what it prints.
COMMANDS = {
    "nothing": ((), 0, "Usage: "),
    "help": (("--help",), 0, "Simulate federated learning with partial layer aggregation"),
    "version": (("--version",), 0, r"fedsim \d"),
    "help of a command": (("barriers", "--help"), 0, "Two or more checkpoint files"),
    "list": (("list", "strategies"), 0, "Li et al. 2020"),
    "list of models": (("list", "models"), 0, "mlp"),
    "list of settings": (("list", "settings", "local"), 0, "local.lr = 0.05"),
    "list of data": (("list", "data"), 0, "digits"),
    "no such command": (("runn",), 2, "No such command 'runn'"),
    "no such option": ((*RUN, "--fast"), 2, "No such option:? .*--fast"),
    "no file": (("run", "nowhere.toml"), 2, "nowhere.toml cannot be read"),
    "no TOML": (("run", "broken.toml"), 2, "broken.toml is not TOML"),
    "unknown key": ((*RUN, "--set", "local.learning_rate=1"), 2, "unknown key 'local.learning_rate'"),
    "bad value": ((*RUN, "--set", "local.lr=0"), 2, "local.lr = 0: must be greater than 0"),
    "bad --set": ((*RUN, "--set", "rounds=ten"), 2, 'rounds = "ten": must be a valid integer'),
    "unknown name": ((*RUN, "--set", 'strategy.name="scafold"'), 2, "did you mean 'SCAFFOLD'"),
    "export to another kind of file": (("export", "runs/a", "--to", "a.pt"), 2, "a.pt: .* must end in .safetensors"),
    "export of no round": (("export", "runs/a", "--to", "a.safetensors", "--round", "x"), 2, "must be 'best', 'last'"),
    "unknown name of a list": (("list", "models", "mpl"), 2, "did you mean 'mlp'"),
}
# Commands one by one, each in a process that is forked once the command line is imported.
SPY = """
import json, os, sys
from fedsim.cli.commands import main

for name, arguments in {commands}.items():
    if os.fork():
        os.wait()
        continue
    for number, stream in ((1, "out"), (2, "err")):
        os.dup2(os.open(f"{{name}}.{{stream}}", os.O_WRONLY | os.O_CREAT), number)
    sys.argv = ["fedsim", *arguments]
    try:
        main()
        code = None
    except SystemExit as end:
        code = end.code
    sys.stdout.flush()
    sys.stderr.flush()
    with open(f"{{name}}.json", "w") as file:
        json.dump([code or 0, sorted({heavy} & set(sys.modules))], file)
    os._exit(0)
"""


@pytest.fixture(scope="module")
def answers(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with what each command printed and imported."""
    folder = tmp_path_factory.mktemp("answers")
    (folder / "study.toml").write_text(STUDY)
    (folder / "broken.toml").write_text("rounds = ")
    script = SPY.format(heavy=set(HEAVY), commands={name: list(each[0]) for name, each in COMMANDS.items()})
    subprocess.run([sys.executable, "-c", script], cwd=folder, check=True)
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("name", COMMANDS)
def test_a_command_that_needs_nothing_heavy_imports_nothing_heavy(name: str, answers: Path) -> None:
    _, code, text = COMMANDS[name]
    out, err = ((answers / f"{name}.{stream}").read_text() for stream in ("out", "err"))
    assert json.loads((answers / f"{name}.json").read_text()) == [code, []], err
    assert re.search(text, out if code == 0 else err)


def test_importing_fedsim_imports_not_even_numpy() -> None:
    code = "import sys, fedsim; print({'numpy', 'pydantic', 'rich', 'typer'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"


def test_a_python_without_docstrings_is_refused() -> None:
    done = subprocess.run([sys.executable, "-OO", "-m", "fedsim", "list", "models"], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("fedsim: error: python -OO leaves out docstrings")


def help_of(command: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> str:
    monkeypatch.setenv("COLUMNS", "80")
    app([command, "--help"], standalone_mode=False)
    return capsys.readouterr().out


@pytest.mark.parametrize(
    "command", ["run", "partition", "barriers", "path", "compare", "report", "check", "export", "table", "list"]
)
def test_help_fits_80_columns_and_explains_arguments(
    command: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    text = help_of(command, monkeypatch, capsys)
    assert max(map(len, text.splitlines())) <= 80
    arguments = text.partition("Arguments")[2].partition("Options")[0]
    assert re.search(r"(File with|Folders? of|checkpoint|strategies)", arguments)


def test_help_keeps_brackets_and_names_all_kinds_of_groups(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert "[partition]" in help_of("partition", monkeypatch, capsys)
    text = help_of("barriers", monkeypatch, capsys)
    assert all(kind in text for kind in KINDS)


def test_a_name_shows_its_options_with_their_texts(capsys: pytest.CaptureFixture[str]) -> None:
    app(["list", "strategies", "FedProx"], standalone_mode=False)
    words = " ".join(capsys.readouterr().out.split())
    for text in ("fedprox", "mu", "0.01", "at least 0", "Weight of the proximal term", "arXiv 1812.06127"):
        assert text in words


@pytest.mark.slow
def test_a_worker_imports_nothing_that_reads_tables_or_draws() -> None:
    heavy = {"pandas", "pyarrow", "matplotlib", "altair", "scipy.stats"}
    code = f"import sys, fedsim.federation.engines.actor; print('flwr' in sys.modules, {heavy} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "True set()\n"
