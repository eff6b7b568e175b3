"""A config names only code that is the user's, or of an installed package that offers it; all else is not imported."""

import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from fedsim.config.choices import CATALOGUES, Kind
from fedsim.errors import ConfigError

Write = Callable[[str, str], Path]
LEAVES_A_TRACE = "from pathlib import Path\nPath('imported').touch()\ndef load(): ...\n"
IMPORTED = """
import functools, os, subprocess
from subprocess import Popen, getoutput
from fedsim.data import Dataset
from flwr.serverapp.strategy import FedAvg
from torch import nn
from torchvision.models import resnet18
renamed = os.system
bound = functools.partial(getoutput, "touch imported")
layer = nn.Linear(1, 1)
dictionary = dict
class Other: ...
class Net(nn.Module): ...
class OfFlower(FedAvg): ...
built = Net()
class Data(Dataset): ...
def load(): ...
kept = functools.cache(load)
half = functools.partial(load)
class Loader:
    def __call__(self): ...
    def method(self): ...
loader = Loader()
method = loader.method
"""


@pytest.fixture
def write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Write]:
    """Write a file below the working folder, and forget its modules afterwards."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))

    def file(name: str, text: str) -> Path:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        return path

    yield file
    for name, module in list(sys.modules.items()):
        if str(getattr(module, "__file__", None)).startswith(str(tmp_path)):
            del sys.modules[name]


def install(write: Write, monkeypatch: pytest.MonkeyPatch, entry_points: str) -> None:
    """Install a package ``offering``."""
    write("site-packages/offering/__init__.py", "")
    write("site-packages/offering/parts.py", LEAVES_A_TRACE)
    write("site-packages/offering-1.dist-info/METADATA", "Metadata-Version: 2.1\nName: offering\nVersion: 1\n")
    folder = write("site-packages/offering-1.dist-info/entry_points.txt", entry_points).parent.parent
    monkeypatch.syspath_prepend(folder)


@pytest.mark.parametrize("kind", CATALOGUES)
@pytest.mark.parametrize(
    "name",
    [
        "subprocess:getoutput",
        "os:system",
        "builtins:exec",
        "os.path:join",
        "xml.dom.minidom:parse",
        "torch.hub:load",
        "fedsim:run",
        "antigravity:webbrowser",  # which opens a browser as it is imported
    ],
)
def test_code_of_python_and_of_installed_packages_is_not_imported(
    kind: Kind, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("importlib.import_module", None)
    rule = r"which no experiment may call: it may call files of yours, .*; write a function in such a file$"
    with pytest.raises(ConfigError, match=rf"= '{name}' is code of (Python's|the package) '\w+', {rule}"):
        CATALOGUES[kind].find(name)


@pytest.mark.parametrize(
    "name", ["../../x:y", ".x:y", "x:", ":x", "x:y:z", "x y:z", "x:\n", "class:x", "x:y()", "/x:y"]
)
def test_a_path_or_a_relative_name_is_told_by_its_spelling(name: str) -> None:
    with pytest.raises(ConfigError, match=r"must be a module and what is in it, such as '.*'; a path or a relative"):
        CATALOGUES["data"].check_name(name)


def test_a_package_that_does_not_offer_its_code_is_not_imported(write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    install(write, monkeypatch, "[console_scripts]\nfedsim = offering.parts:load\n")
    with pytest.raises(ConfigError, match="is code of the package 'offering', which no experiment may call"):
        CATALOGUES["data"].find("offering.parts:load")
    assert not Path("imported").exists()


def test_an_installed_package_offers_its_code_by_an_entry_point(write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    install(write, monkeypatch, "[fedsim]\nparts = offering.parts\nsystem = os:system\n")
    assert CATALOGUES["data"].find("offering.parts:load").__module__ == "offering.parts"
    with pytest.raises(ConfigError, match="is code of Python's 'os'"):
        CATALOGUES["data"].find("os:system")


def test_a_package_above_the_module_must_be_the_users_too(write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    package = write(
        "site-packages/above/__init__.py", f"__path__.append({str(Path.cwd() / 'mine')!r})\n{LEAVES_A_TRACE}"
    )
    write("mine/below.py", LEAVES_A_TRACE)
    monkeypatch.syspath_prepend(package.parent.parent)
    with pytest.raises(ConfigError, match="is code of the package 'above'"):
        CATALOGUES["data"].find("above.below:load")
    assert not Path("imported").exists()


def test_an_environment_below_the_working_folder_is_no_code_of_the_users(
    write: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = write(".venv/lib/python3/site-packages/library.py", LEAVES_A_TRACE).parent
    monkeypatch.syspath_prepend(folder)
    with pytest.raises(ConfigError, match="is code of the package 'library'"):
        CATALOGUES["data"].find("library:load")
    assert not Path("imported").exists()


@pytest.mark.parametrize(
    "name", ["getoutput", "Popen", "renamed", "bound", "resnet18", "layer", "dictionary", "__class__"]
)
@pytest.mark.parametrize("kind", CATALOGUES)
def test_what_a_file_of_the_users_imports_is_not_called(kind: Kind, name: str, write: Write) -> None:
    write("imports.py", IMPORTED)
    with pytest.raises(ConfigError, match=rf"= 'imports:{name}' is code of .*, which no experiment may call"):
        CATALOGUES[kind].find(f"imports:{name}")
    assert not Path("imported").exists()


@pytest.mark.parametrize("name", ["load", "kept", "half", "loader", "method", "Data"])
def test_what_a_file_of_the_users_defines_is_called(name: str, write: Write) -> None:
    write("imports.py", IMPORTED)
    assert callable(CATALOGUES["data"].find(f"imports:{name}"))


@pytest.mark.parametrize(
    ("kind", "name", "rule"),
    [
        ("strategies", "load", r"must be a subclass of fedsim.strategy.Strategy, not a function"),
        ("strategies", "Net", r"must be a subclass of fedsim.strategy.Strategy, not Net"),
        ("models", "Other", r"must be a function or a subclass of torch.nn.Module, not Other"),
        ("data", "Net", r"must be a function or a subclass of fedsim.data.Dataset, not Net"),
        ("partitions", "Other", r"must be a function, not Other"),
        ("features", "Other", r"must be a function, not Other"),
        ("features", "os", r"must be a function, not a module"),
        ("models", "built", r"must be a function or a class, not a Net that is already built"),
        (
            "strategies",
            "OfFlower",
            r"must be a subclass of .*, not OfFlower; a FlowerRule can hold a strategy of Flower",
        ),
    ],
)
def test_an_entry_is_what_its_kind_needs_before_it_is_called(kind: Kind, name: str, rule: str, write: Write) -> None:
    write("imports.py", IMPORTED)
    with pytest.raises(ConfigError, match=f"= 'imports:{name}' {rule}$"):
        CATALOGUES[kind].find(f"imports:{name}")


@pytest.mark.parametrize("from_a_file", [True, False])
def test_a_script_and_what_is_typed_may_be_named(from_a_file: bool, write: Write) -> None:
    script = "\n".join(
        [
            "from fedsim.config.choices import CATALOGUES",
            "from subprocess import getoutput",
            "def load(): ...",
            "assert CATALOGUES['data'].find('__main__:load') is load",
            "try:",
            "    CATALOGUES['data'].find('__main__:getoutput')",
            "except ValueError as error:",
            "    print(error)",
        ]
    )
    arguments = [str(write("script.py", script))] if from_a_file else ["-c", script]
    done = subprocess.run([sys.executable, *arguments], capture_output=True, text=True, check=True)
    assert "'__main__:getoutput' is code of Python's 'subprocess'" in done.stdout


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b"x = 1\ndef load(:\n", r"SyntaxError: invalid syntax \(broken.py, line 2\)"),
        (b"x = 1\n\tload = 2\n", r"IndentationError: unexpected indent \(broken.py, line 2\)"),
        (b"x = '\xff'\n", r"SyntaxError: .*'utf-8' codec can't decode byte 0xff.* \(broken.py, line 1\)"),
        (b"x = '\0'\n", r"source code string cannot contain null bytes in 'broken'"),
        (b"class End(BaseException): ...\nraise End\n", r"End \(broken.py, line 2\)"),
    ],
)
def test_a_module_that_cannot_be_imported_is_one_line(text: bytes, message: str, write: Write) -> None:
    write("broken.py", "").write_bytes(text)
    with pytest.raises(ConfigError, match=rf"data.name = 'broken:load' cannot be imported from .*: {message}$"):
        CATALOGUES["data"].find("broken:load")
