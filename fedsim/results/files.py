"""Files that are written whole or not at all, and files of JSON lines."""

import json
import os
import re
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from secrets import token_hex
from typing import TYPE_CHECKING, Any

from fedsim.errors import ConfigError, about_file, message_of
from fedsim.reading import check_file, read_bytes

if TYPE_CHECKING:  # a worker that reads no table does not wait for pandas
    import pandas as pd

SHOWN = 50  # letters of a name in that of its temporary file, which is longer


def write_whole(path: Path, content: bytes | str) -> None:
    """Write a file so that a reader, or a run that was killed, sees all of it or nothing; a link to a file stays one.

    Raises
    ------
    OSError
        If it cannot be written, or the path is that of a device, a pipe or a socket: the file would take its place.
    """
    with suppress(FileNotFoundError):
        check_file(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    data = content.encode() if isinstance(content, str) else content
    target = Path(os.path.realpath(path)) if path.is_symlink() else path
    temporary = target.with_name(f".{target.name[:SHOWN]}.{token_hex(4)}")
    with about_file(path, temporary):
        handle = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)  # less the user's umask
        try:
            with os.fdopen(handle, "wb") as file:
                file.write(data)
            temporary.replace(target)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise


@contextmanager
def write_folder(path: Path) -> Iterator[Path]:
    """Give a folder to fill, which takes its name at the end: a reader sees all of it or nothing.

    If another process that fills it too is faster, its folder stays.
    """
    prefix = f".{path.name}."
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=prefix, ignore_cleanup_errors=True) as temporary:
        partial = Path(temporary) / path.name
        try:
            partial.mkdir()
            yield partial
            partial.replace(path)
        except (OSError, ConfigError):
            if not path.exists():
                raise
    for left in path.parent.glob(f"{prefix}*"):  # by a kill
        shutil.rmtree(left, ignore_errors=True)


def json_text(content: Any) -> str:
    """Return the text of a JSON file."""
    return json.dumps(content, indent=1, default=str) + "\n"


def write_json(path: Path, content: Any) -> None:
    """Write JSON, whole or not at all."""
    write_whole(path, json_text(content))


def write_parquet(path: Path, table: "pd.DataFrame") -> None:
    """Write a table as parquet, whole or not at all."""
    write_whole(path, table.to_parquet(index=False))


def by_round(folder: Path, suffix: str = "") -> dict[int, Path]:
    """Return what a folder has of each round, by round and in their order; copies under other names do not count."""
    names = (
        (re.fullmatch(rf"round-(\d{{5,}}){re.escape(suffix)}", path.name), path) for path in folder.glob("round-*")
    )
    return dict(sorted((int(match[1]), path) for match, path in names if match))


def read_json(path: Path, kind: type) -> Any:
    """Read a JSON file.

    Parameters
    ----------
    kind
        What it must hold: a dict or a list.

    Raises
    ------
    ConfigError
        If it is damaged, or holds something else.
    """
    try:
        content = json.loads(read_bytes(path))
    except (OSError, ValueError, RecursionError) as error:
        raise ConfigError(
            f"{path} is damaged ({message_of(error)}); remove the run's folder and run it again"
        ) from error
    if not isinstance(content, kind):
        what = type(content).__name__
        raise ConfigError(f"{path} is damaged (it holds a {what}); remove the run's folder and run it again")
    return content


def read_rows(path: Path) -> "pd.DataFrame":
    """Read a file of JSON lines; a last line that a kill cut short is left out.

    Raises
    ------
    ConfigError
        If another line is damaged.
    """
    import pandas as pd

    return pd.DataFrame(_rows(path))


def cut(path: Path, size: int, last_round: int | None = None) -> None:
    """Drop what follows the first bytes of a file of JSON lines, except one row of the last round if it comes next."""
    with path.open("r+b") as file:
        file.seek(size)
        line = file.readline()
        with suppress(ConfigError):
            if line.endswith(b"\n") and _row(line, str(path))["round"] == last_round:
                size += len(line)
        file.truncate(size)


def keep_rounds(path: Path, last_round: int) -> None:
    """Drop the rows of rounds after ``last_round`` from a file of JSON lines, and a last line that was cut short."""
    keep_rows(path, lambda row: row["round"] <= last_round)


def keep_rows(path: Path, wanted: Callable[[Mapping[str, Any]], bool]) -> None:
    """Drop the rows that are not wanted from a file of JSON lines, and a last line that was cut short.

    A file that is left without rows is removed, as a run has some of its files only if there are rows for them.

    Raises
    ------
    ConfigError
        If another line is damaged; the file is not changed.
    """
    if not path.exists() or not path.stat().st_size:
        return
    if kept := [row for row in _rows(path) if wanted(row)]:
        write_whole(path, "".join(json.dumps(row) + "\n" for row in kept))
    else:
        path.unlink()


def _rows(path: Path) -> Iterator[dict[str, Any]]:
    if not path.exists():
        return
    check_file(path)
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            if line.endswith(b"\n"):
                yield _row(line, f"{path} is damaged in line {number}")


def _row(line: bytes, problem: str) -> dict[str, Any]:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError):
        row = None
    if not isinstance(row, dict) or type(row.get("round")) is not int:
        raise ConfigError(f"{problem}; remove the run's folder and run it again")
    return row


def copy_writable(source: Path, target: Path, *, ignore: Callable[[str, list[str]], set[str]] | None = None) -> None:
    """Copy a file or a folder, whose copy may be written whatever the rights of the original are."""
    if not source.is_dir():
        shutil.copyfile(source, target)
        return
    target.mkdir(exist_ok=True)
    names = sorted(path.name for path in source.iterdir())
    ignored = ignore(str(source), names) if ignore else ()
    for name in names:
        if name not in ignored:
            copy_writable(source / name, target / name, ignore=ignore)
