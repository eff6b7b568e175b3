"""A run is named by content: change a byte that could change a number and it is another run, else it is the same."""

import importlib
import os
import py_compile
import shutil
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from fedsim.config import choices
from fedsim.config.content import counted_files
from fedsim.config.custom import forget_changed
from fedsim.config.experiment_file import read_experiment
from fedsim.config.naming import partition_name, run_name
from fedsim.data import fingerprint
from fedsim.errors import ConfigError

BASE: dict[str, Any] = {"rounds": 3, "clients": 4, "partition": {"scheme": "iid"}}
PART = "def load(*, csv='', files=(), table={}, kind='a', root=''): pass\n"
MODEL = {"model": {"name": "net:load"}}
# By what is tried: the files, the settings, and those of the files whose content counts.
COUNTED: dict[str, tuple[Mapping[str, str], Mapping[str, Any], tuple[str, ...]]] = {
    "a file of any option": (
        {"mine.py": PART, "a.csv": "1"},
        {"data": {"name": "mine:load", "csv": "a.csv"}},
        ("a.csv", "mine.py"),
    ),
    "files in a list": (
        {"mine.py": PART, "x/a": "1", "x/b": "2", "x/c": "3"},
        {"data": {"name": "mine:load", "files": ["x/a", "x/b"]}},
        ("x/a", "x/b"),
    ),
    "files in tables and lists": (
        {"mine.py": PART, "a": "1", "b": "2", "c": "3"},
        {"data": {"name": "mine:load", "table": {"sites": [{"file": "a"}, {"file": "b", "n": 3}], "c": 0.5}}},
        ("a", "b", "c"),
    ),
    "a folder": (
        {"mine.py": PART, "sites/one/a": "1", "sites/b": "2"},
        {"data": {"name": "mine:load", "root": "sites"}},
        ("sites/one/a", "sites/b"),
    ),
    "a pattern": ({"mine.py": PART, "x/a.csv": "1"}, {"data": {"name": "mine:load", "csv": "x/*.csv"}}, ("x/a.csv",)),
    "a default": (
        {"mine.py": PART.replace("csv=''", "csv='a.csv'"), "a.csv": "1"},
        {"data": {"name": "mine:load"}},
        ("a.csv",),
    ),
    "a data_dir of the user's own function": (
        {"mine.py": "def load(*, data_dir): pass\n", "d/a": "1"},
        {"data": {"name": "mine:load", "data_dir": "d"}},
        ("d/a",),
    ),
    "folders in folders without __init__.py": (
        {"nets/small/one.py": "from nets.other import two\ndef load(): pass\n", "nets/other/two.py": "a = 1\n"},
        {"model": {"name": "nets.small.one:load"}},
        ("nets/small/one.py", "nets/other/two.py"),
    ),
    "weights of a model": (
        {"net.py": "def load(shape, classes, weights: str): pass\n", "w.safetensors": "1"},
        {"model": {"name": "net:load", "weights": "w.safetensors"}},
        ("w.safetensors", "net.py"),
    ),
    "ids of a partition": (
        {"own.py": "def split(labels, clients, rng, *, by: str): pass\n", "ids.txt": "1"},
        {"partition": {"scheme": "own:split", "by": "ids.txt"}},
        ("ids.txt", "own.py"),
    ),
    "an option of a strategy": (
        {
            "own.py": "from fedsim import Strategy\nfrom fedsim.strategy import Option\nimport rule\n"
            "class Own(Strategy):\n    begin: str = Option('', 'Start.')\n",
            "rule.py": "x = 1\n",
            "start.pt": "1",
        },
        {"strategy": {"name": "own:Own", "begin": "start.pt"}},
        ("own.py", "rule.py", "start.pt"),
    ),
    "a file next to the source": (
        {"lab/mine.py": PART, "lab/a.csv": "1", "lab/__init__.py": ""},
        {"data": {"name": "lab.mine:load", "csv": "a.csv"}},
        ("lab/a.csv", "lab/mine.py", "lab/__init__.py"),
    ),
    "fedsim's own arrays": ({"a.npz": "1"}, {"data": {"name": "arrays", "path": "a.npz"}}, ("a.npz",)),
    "fedsim's own folders": (
        {"f/train/cat/1.png": "1"},
        {"data": {"name": "image-folder", "path": "f"}},
        ("f/train/cat/1.png",),
    ),
    "an imported module": (
        {"net.py": "import helper\ndef load(): pass\n", "helper.py": "x = 1\n"},
        MODEL,
        ("net.py", "helper.py"),
    ),
    "a module that is imported later": (
        {"net.py": "def load():\n    from helper import x\n", "helper.py": "import deeper\n", "deeper.py": "x = 1\n"},
        MODEL,
        ("helper.py", "deeper.py"),
    ),
    "a module that is imported under a condition": (
        {"net.py": "try:\n    import helper as h\nexcept ImportError: pass\ndef load(): pass\n", "helper.py": ""},
        MODEL,
        ("helper.py",),
    ),
    "a package with relative imports": (
        {
            "pack/__init__.py": "from .inner.layers import load\n",
            "pack/inner/__init__.py": "from .. import base\n",
            "pack/inner/layers.py": "from . import blocks\nfrom ..base import x\ndef load(): pass\n",
            "pack/inner/blocks.py": "",
            "pack/base.py": "x = 1\n",
        },
        {"model": {"name": "pack:load"}},
        ("pack/__init__.py", "pack/inner/__init__.py", "pack/inner/layers.py", "pack/inner/blocks.py", "pack/base.py"),
    ),
    "a folder without __init__.py": (
        {"space/net.py": "import space.other\ndef load(): pass\n", "space/other.py": ""},
        {"model": {"name": "space.net:load"}},
        ("space/net.py", "space/other.py"),
    ),
    "everything of a package": (
        {
            "net.py": "from pack import *\ndef load(): pass\n",
            "pack/__init__.py": "__all__ = ['one']\n",
            "pack/one.py": "",
        },
        MODEL,
        ("pack/__init__.py", "pack/one.py"),
    ),
    "a name in a text": (
        {
            "net.py": "import importlib\ndef load():\n    importlib.import_module('pack.one')\n",
            "pack/__init__.py": "",
            "pack/one.py": "",
        },
        MODEL,
        ("pack/__init__.py", "pack/one.py"),
    ),
    "a name that is put together": (
        {
            "net.py": "from importlib import import_module\ndef load(kind='one'):\n    import_module(f'pack.{kind}')\n",
            "pack/__init__.py": "",
            "pack/one.py": "import helper\n",
            "helper.py": "",
        },
        MODEL,
        ("pack/one.py", "helper.py"),
    ),
    "any name": (
        {"net.py": "def load(kind='x'):\n    __import__(kind)\n", "other.py": ""},
        MODEL,
        ("other.py",),
    ),
    "a script that is run": (
        {"net.py": "import runpy\ndef load():\n    runpy.run_path('other.py')\n", "other.py": ""},
        MODEL,
        ("other.py",),
    ),
    "a part that is defined in another module": (
        {"net.py": "from helper import load\nload.x = 1\n", "helper.py": "def load(): pass\n"},
        MODEL,
        ("net.py", "helper.py"),
    ),
    "a circle of imports": (
        {"net.py": "import helper\ndef load(): pass\n", "helper.py": "import net\n"},
        MODEL,
        ("net.py", "helper.py"),
    ),
}


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Work in a folder of its own, and leave none of its modules behind."""
    before = set(sys.modules)
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("FEDSIM_DATA", raising=False)
    yield
    for name in set(sys.modules) - before:
        if str(tmp_path) in str(getattr(sys.modules[name], "__file__", "") or ""):
            del sys.modules[name]


def write(files: Mapping[str, str], folder: Path = Path()) -> None:
    for name, text in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


def name_of(settings: Mapping[str, Any]) -> str:
    [config] = read_experiment(BASE | dict(settings)).configs()
    return run_name(config)


@pytest.mark.parametrize("tried", COUNTED)
def test_a_changed_byte_is_another_run_and_no_changed_byte_is_the_same(tried: str, tmp_path: Path) -> None:
    files, settings, counted = COUNTED[tried]
    write(files)
    first = name_of(settings)
    for file in counted:
        os.utime(file, (1e9, 1e9))
        assert name_of(settings) == first, f"the time of {file}"
        status = Path(file).stat()
        write({file: files[file] + "\n"})
        os.utime(file, ns=(status.st_atime_ns, status.st_mtime_ns))
        assert name_of(settings) != first, file
        write({file: files[file]})
        assert name_of(settings) == first, f"{file} as it was"
    write(files, tmp_path / "elsewhere")
    write({"unused.csv": "1", "unused.py": ""}, tmp_path / "elsewhere/more")
    assert name_of(settings) == first
    os.chdir(tmp_path / "elsewhere")
    assert name_of(settings) == first


def test_a_path_may_be_absolute_relative_or_a_link(tmp_path: Path) -> None:
    write({"mine.py": PART, "x/a.csv": "1"})
    (tmp_path / "a.csv").symlink_to("x/a.csv")
    paths = ["a.csv", "x/a.csv", str(tmp_path / "x/a.csv"), "./x/../a.csv"]
    assert len({name_of({"data": {"name": "mine:load", "csv": path}}) for path in paths}) == 1
    assert name_of({"data": {"name": "mine:load", "csv": "b.csv"}}) != name_of(
        {"data": {"name": "mine:load", "csv": "a.csv"}}
    )


def test_an_option_may_be_a_path_and_is_written_as_a_text() -> None:
    write(
        {
            "mine.py": "from pathlib import Path\ndef load(*, csv: Path | None = None, more: list[Path] = []): pass\n",
            "a": "1",
        }
    )
    settings = {"data": {"name": "mine:load", "csv": "a", "more": ["a"]}}
    [config] = read_experiment(BASE | settings).configs()
    assert 'csv = "a"' in config.to_toml()
    first = name_of(settings)
    write({"a": "2"})
    assert name_of(settings) != first


def test_equal_texts_that_are_files_of_other_names_are_other_runs() -> None:
    write({"mine.py": PART, "a": "", "b": "", "sep": ""})
    assert name_of({"data": {"name": "mine:load", "kind": "a"}}) != name_of(
        {"data": {"name": "mine:load", "kind": "b"}}
    )


@pytest.mark.parametrize(
    "text", ["/", ".", "..", "~", "", "a" * 5000, "no\0file", "*", "conv*", "http://x.org/a?b=[c]"]
)
def test_a_text_that_names_no_file_of_its_own_counts_as_a_text(text: str) -> None:
    write({"lab/mine.py": PART, "other.csv": "1"})
    settings = {"data": {"name": "lab.mine:load", "kind": text}}
    first = name_of(settings)
    write({"other.csv": "2", "runs/x/log.txt": "1", "lab/note.txt": "1"})
    assert name_of(settings) == first
    [config] = read_experiment(BASE | settings).configs()
    assert [each.place.name for each in counted_files(config)] == ["mine.py"]


def test_swapped_files_are_another_run() -> None:
    write({"net.py": "import one.x, two.x\ndef load(): pass\n", "one/x.py": "a = 1\n", "two/x.py": "a = 2\n"})
    first = name_of(MODEL)
    write({"one/x.py": "a = 2\n", "two/x.py": "a = 1\n"})
    assert name_of(MODEL) != first


def test_modules_of_libraries_and_of_fedsim_do_not_count() -> None:
    write(
        {"net.py": "import os, torch.nn, numpy as np\nfrom fedsim import lazy\nimport strategies\ndef load(): pass\n"}
    )
    [config] = read_experiment(BASE | MODEL).configs()
    assert [str(each.place) for each in counted_files(config)] == [str(Path("net.py").absolute())]


def test_what_was_named_before_keeps_its_name() -> None:
    write(
        {
            "golden_one.py": '"""One file."""\nfrom fedsim.data.digits import digits\n\n\n'
            "def load(*, noise: float = 0.0):\n    return digits()\n"
        }
    )
    written = {  # as fedsim named them before it looked at what modules import
        "bf6b13af-s0 partition-1212859a-s0": {},
        "0228017e-s3 partition-ad22cdab-s3": {
            "partition": {"scheme": "dirichlet", "alpha": 0.1},
            "strategy": {"name": "layer_set", "shared": "head"},
            "seed": 3,
        },
        "c1c469c8-s0 partition-6989d45e-s0": {
            "data": {"name": "fashion-mnist", "train_examples": 100, "data_dir": "anywhere"},
            "model": {"name": "cnn"},
            "local": {"lr": 0.5},
        },
        "8b422c43-s0 partition-394c4a7c-s0": {"data": {"name": "golden_one:load", "noise": 0.5}},
    }
    for names, settings in written.items():
        [config] = read_experiment(BASE | {"barriers": {"on": ["server"]}} | settings).configs()
        assert f"{run_name(config)} {partition_name(config)}" == names


def test_a_partition_is_another_one_if_its_data_are_and_not_if_the_model_is() -> None:
    write({"mine.py": PART, "net.py": "def load(shape, classes): pass\n", "a.csv": "1"})
    settings = {"data": {"name": "mine:load", "csv": "a.csv"}, "model": {"name": "net:load"}}

    def name() -> str:
        return partition_name(read_experiment(BASE | settings).configs()[0])

    first = name()
    write({"net.py": "def load(shape, classes): pass  # else\n"})
    assert name() == first
    write({"a.csv": "2"})
    assert name() != first


def test_a_large_file_is_read_once_for_a_sweep(monkeypatch: pytest.MonkeyPatch) -> None:
    write({"mine.py": PART, "a.csv": "1"})
    monkeypatch.setattr(fingerprint, "SETTLED_SECONDS", -1)  # as if it had not just been written
    read: list[str] = []
    digest = fingerprint.file_digest

    def counting(file: Any, method: str) -> Any:
        read.append(Path(file.name).name)
        return digest(file, method)

    monkeypatch.setattr(fingerprint, "file_digest", counting)
    experiment = read_experiment(
        BASE | {"data": {"name": "mine:load", "csv": "a.csv"}, "sweep": {"seed": list(range(100))}}
    )
    assert len({run_name(config) for config in experiment.configs()}) == 100
    assert sorted(read) == ["a.csv", "mine.py"]


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write({"mine.py": PART, "a.csv": "1"})

    def refuse(*_: object) -> None:
        raise PermissionError(13, "Permission denied", "a.csv")

    monkeypatch.setattr(
        fingerprint,
        "file_digest",
        lambda file, method, digest=fingerprint.file_digest: (
            refuse() if file.name.endswith("a.csv") else digest(file, method)
        ),
    )
    with pytest.raises(
        ConfigError, match=r"^data.csv: a.csv cannot be read \(Permission denied\), but a run.s name depends on"
    ):
        name_of({"data": {"name": "mine:load", "csv": "a.csv"}})


def value_of(name: str) -> Any:
    """Return what a custom part returns, imported again if a source has changed."""
    forget_changed([name])
    return choices.CATALOGUES["data"].find(name)()


@pytest.mark.parametrize("before", [False, True], ids=["imported by fedsim", "imported by a script"])
@pytest.mark.parametrize("later", [False, True], ids=["at once", "later"])
def test_the_code_that_runs_is_the_code_that_names_the_run(before: bool, later: bool, tmp_path: Path) -> None:
    inside = "def load():\n    from pack import deep\n    return deep.x\n"
    outside = "from pack import deep\nx = deep.x\ndef load(): return x\n"
    write({"own.py": inside if later else outside, "pack/deep.py": "x = 1\n"})
    if before:
        sys.path.append(str(tmp_path))
        importlib.import_module("own").load()
        sys.path.remove(str(tmp_path))
    else:
        assert value_of("own:load") == 1
    write({"pack/deep.py": "x = 2\n"})  # of the same size, and perhaps in the same second
    assert value_of("own:load") == 2
    assert value_of("own:load") == 2


def test_parts_that_share_a_module_all_get_its_new_content() -> None:
    write(
        {
            "shared.py": "x = 1\n",
            "one.py": "from shared import x\ndef load(): return x\n",
            "two.py": "from shared import x\ndef load(): return x\n",
        }
    )
    assert value_of("one:load") == value_of("two:load") == 1
    write({"shared.py": "x = 2\n"})
    assert value_of("two:load") == 2
    assert value_of("one:load") == 2


def test_the_same_names_in_another_folder_are_other_modules(tmp_path: Path) -> None:
    for folder, x in (("a", 1), ("b", 2)):
        write({"own.py": "import near\ndef load(): return near.x\n", "near.py": f"x = {x}\n"}, tmp_path / folder)
    for folder, x in (("a", 1), ("b", 2), ("a", 1)):
        os.chdir(tmp_path / folder)
        assert value_of("own:load") == x


def test_a_file_that_is_moved_in_with_an_old_time_is_seen(tmp_path: Path) -> None:
    write({"mine.py": PART, "a.csv": "1"})
    settings = {"data": {"name": "mine:load", "csv": "a.csv"}}
    first = name_of(settings)
    status = Path("a.csv").stat()
    write({"other": "2"})
    os.utime("other", ns=(status.st_atime_ns, status.st_mtime_ns))
    shutil.move("other", "a.csv")
    assert name_of(settings) != first


def test_a_file_whose_time_is_set_back_is_read_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fingerprint, "SETTLED_SECONDS", -1)  # as if it had been written long ago
    write({"a.csv": "1"})
    status, first = Path("a.csv").stat(), fingerprint.fingerprint(Path("a.csv"))
    time.sleep(0.02)  # longer than the system's clock of files ticks
    write({"a.csv": "2"})
    os.utime("a.csv", ns=(status.st_atime_ns, status.st_mtime_ns))
    assert fingerprint.fingerprint(Path("a.csv")) != first


def test_compiled_code_of_a_source_that_was_as_long_and_as_old_is_not_run() -> None:
    write({"own.py": "def load(): return 1\n"})
    status = Path("own.py").stat()
    py_compile.compile("own.py")
    write({"own.py": "def load(): return 2\n"})
    os.utime("own.py", ns=(status.st_atime_ns, status.st_mtime_ns))
    assert value_of("own:load") == 2
