"""What of a run's folder must be the same in equal runs, and where two of them differ."""

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

LOCK, LOG = ".lock", "log.txt"
TIMES = ("started", "starts", "stopped", "sha256")  # of env.json: times, and the hash of all
WITH_TIMES = ("env.json", "timing.jsonl", "config.toml", "starts")  # whose seals differ in equal runs
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
    """Return the content of a file without times, and without the engine, which changes no number."""
    match path.name:
        case "env.json":
            return json.dumps({k: v for k, v in json.loads(path.read_bytes()).items() if k not in TIMES}).encode()
        case "manifest.json" | "DONE":
            return json.dumps(_unsealed(json.loads(path.read_bytes()))).encode()
        case "timing.jsonl":  # a kill may lose the line of the last round before it
            rounds = [json.loads(line)["round"] for line in path.read_text().splitlines()]
            return b"in order" if rounds == sorted(set(rounds)) else json.dumps(rounds).encode()
        case "config.toml":
            return re.sub(rb"(?s)\[engine\].*?(?=\n\[|\Z)", b"", path.read_bytes())
    return path.read_bytes()


def _unsealed(content: Any) -> Any:
    """Return what is reported of files, without the hashes of those that hold times, and of itself."""
    if not isinstance(content, dict):
        return content
    own = ("sha256",) if "bytes" not in content else ()
    return {key: _unsealed(value) for key, value in content.items() if key not in (*WITH_TIMES, *own)}
