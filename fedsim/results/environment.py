"""The environment of a run: versions, machine and source."""

import platform
import subprocess
from collections.abc import Mapping
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

import fedsim

PACKAGES = ("flwr", "ray", "torch", "torchvision", "numpy")


def now() -> str:
    """Return the time in UTC, to the microsecond, as ISO 8601."""
    return datetime.now(UTC).isoformat(timespec="microseconds")


def versions() -> dict[str, Any]:
    """Return the versions of fedsim, Python and the packages that compute."""
    return {
        "fedsim": fedsim.__version__,
        "python": platform.python_version(),
        "packages": {name: metadata.version(name) for name in PACKAGES},
    }


def different_versions(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """Return the versions of which numbers depend that are not the same, each as ``torch 2.9.0 (now 2.10.0)``."""
    return [f"{name} {then} (now {today})" for name, (then, today) in differing(before, now).items()]


def differing(one: Mapping[str, Any], other: Mapping[str, Any]) -> dict[str, tuple[str, str]]:
    """Return the versions of which numbers depend that both know and that are not the same, by name."""
    first, second = _numbers_from(one), _numbers_from(other)
    return {name: (first[name], second[name]) for name in second if first.get(name) not in (None, second[name])}


def _numbers_from(env: Mapping[str, Any]) -> dict[str, str]:
    """Return the versions of what computes numbers; Ray only carries them, and a patch of Python changes none."""
    python = ".".join(str(env["python"]).split(".")[:2]) if "python" in env else None
    found = {"fedsim": env.get("fedsim"), "Python": python, **env.get("packages", {})}
    return {name: str(version) for name, version in found.items() if version is not None and name != "ray"}


def environment(device: torch.device) -> dict[str, Any]:
    """Return versions, platform, device and the commit of the source, where it is a git checkout."""
    return {
        **versions(),
        "commit": _commit(),
        "platform": platform.platform(),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
    }


def _commit() -> str | None:
    try:
        git = subprocess.run(
            ["git", "rev-parse", "HEAD"],
            cwd=Path(__file__).parent,
            capture_output=True,
            text=True,
            check=True,
            timeout=5,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return git.stdout.strip()
