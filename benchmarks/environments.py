"""The peers' virtual environments, created when they are first needed."""

import shutil
import subprocess
import sys
import sysconfig
from dataclasses import dataclass
from pathlib import Path

FOLDER = Path(__file__).parent / ".venvs"
INSTALL_SECONDS = 1200


@dataclass(frozen=True)
class Peer:
    """A simulator from the package index.

    Parameters
    ----------
    requirements
        Requirements for pip.
    python
        Python version that the peer needs, or None for the current one; packages of this environment, including torch,
        are then reused where the peer's requirements allow.
    """

    requirements: tuple[str, ...]
    python: str | None = None


PEERS = {
    # 3.0 needs Python 3.14; 2.0 is the newest for the versions that torch and Ray run on.
    "blazefl": Peer(("blazefl[contrib,reproducibility]", "torchvision"), "python3.12"),
    "fedlab": Peer(("fedlab",)),
    "fluke": Peer(("fluke-fl",)),
}


def environment(name: str) -> Path:
    """Return the Python of a peer's environment, creating it if it does not exist.

    Raises
    ------
    RuntimeError
        If it cannot be created; the message is the reason.
    """
    peer, folder = PEERS[name], FOLDER / name
    python, done = folder / "bin" / "python", folder / "installed"
    if done.exists():
        return python
    base = _interpreter(peer.python) if peer.python else sys.executable
    shutil.rmtree(folder, ignore_errors=True)
    print(f"installing {name} into {folder}", flush=True)
    _call([base, "-m", "venv", str(folder)])
    if not peer.python:
        packages = Path(sysconfig.get_path("purelib"))
        (folder / packages.relative_to(sys.prefix) / "shared.pth").write_text(f"{packages}\n")
    _call([str(python), "-m", "pip", "install", "--quiet", *peer.requirements])
    done.touch()
    return python


def _interpreter(name: str) -> str:
    """Return a working Python of this version; a version manager's stub may not work."""
    stubs = [shutil.which(name), *map(str, sorted(Path.home().glob(f".pyenv/versions/{name[6:]}*/bin/python")))]
    for path in filter(None, stubs):
        if subprocess.run([path, "-c", ""], capture_output=True, check=False).returncode == 0:
            return path
    raise RuntimeError(f"it needs {name}, which is not on this machine")


def _call(command: list[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True, timeout=INSTALL_SECONDS, check=False)
    if done.returncode:
        errors = [line for line in done.stderr.splitlines() if "ERROR" in line] or done.stderr.splitlines()
        raise RuntimeError(errors[-1] if errors else f"{command} ended with code {done.returncode}")
