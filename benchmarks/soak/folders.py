"""What of a run's folder must be the same in equal runs, and where two of them differ."""

import json
import re
from collections.abc import Mapping
from pathlib import Path

LOCK, LOG = ".lock", "log.txt"
TIMES = ("started", "stopped")  # of env.json
PAGES = re.compile(r".*\.(html|tex|md|csv|pdf|png)")  # which hold seconds; they are made from the other files


def run_folder(folder: Path) -> Path | None:
    """Return the folder of the only run below a folder, if it has begun."""
    found = sorted(path for path in folder.glob("runs/*/*") if path.is_dir() and not path.name.startswith("."))
    return found[0] if found else None


def contents(run: Path) -> dict[str, bytes]:
    """Return all files of a run, without what holds times."""
    found = {str(path.relative_to(run)): path for path in sorted(run.rglob("*")) if path.is_file()}
    wanted = {name: path for name, path in found.items() if not PAGES.fullmatch(name) and name not in (LOCK, LOG)}
    place = str(run.parents[2].resolve()).encode()  # of the experiment, which env.json names
    return {name: _timeless(path).replace(place, b"") for name, path in wanted.items()}


def difference(found: Mapping[str, bytes], expected: Mapping[str, bytes]) -> str:
    """Return where two runs differ, in words; empty if they do not."""
    parts = {
        "lacks": sorted(expected.keys() - found.keys()),
        "has in addition": sorted(found.keys() - expected.keys()),
        "has otherwise": sorted(name for name in expected.keys() & found.keys() if expected[name] != found[name]),
    }
    return "; ".join(f"{words} {', '.join(names[:4])}" for words, names in parts.items() if names)


def _timeless(path: Path) -> bytes:
    match path.name:
        case "env.json":
            return json.dumps({k: v for k, v in json.loads(path.read_bytes()).items() if k not in TIMES}).encode()
        case "timing.jsonl":
            return json.dumps([json.loads(line)["round"] for line in path.read_text().splitlines()]).encode()
        case "config.toml":
            return re.sub(rb"(?s)\[engine\].*?(?=\n\[|\Z)", b"", path.read_bytes())
    return path.read_bytes()
