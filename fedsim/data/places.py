"""Where data lie on this machine, and where what was made of them is kept."""

import json
import os
from collections.abc import Callable, Sequence
from functools import lru_cache
from hashlib import file_digest, sha256
from pathlib import Path


def cache_folder() -> Path:
    """Return the folder of downloads and decoded images: ``$XDG_CACHE_HOME/fedsim``, else ``~/.cache/fedsim``."""
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "fedsim"


def find_or_download(
    name: str,
    data_dir: str | None,
    has_files: Callable[[Path], bool],
    download: Callable[[Path], object],
    *,
    folders: Sequence[str],
    needs: str,
    more_places: Sequence[Path] = (),
) -> Path:
    """Return the folder of a known data set: the first in which ``has_files`` sees it, or else the downloaded one.

    Parameters
    ----------
    data_dir
        The folder, or one that has one of ``folders``; if given, no other is looked at and nothing is downloaded.
        Else one of ``folders`` below ``$FEDSIM_DATA`` or below the folder of downloads.
    download
        Puts the data below the folder that it is given, into one of ``folders``.
    needs
        What has to lie there, for the message.
    more_places
        Further folders to look into before a download.

    Raises
    ------
    FileNotFoundError
        If the data are nowhere and cannot be downloaded; the message says where they may lie.
    """
    remedy = f"give the folder with {needs} as [data] data_dir, or have it as {folders[0]} in $FEDSIM_DATA"
    if more_places:
        remedy += f", or fill {', '.join(map(str, more_places))}"
    if data_dir is not None:
        given = Path(data_dir).expanduser()
        places = [given, *(given / folder for folder in folders)]
    else:
        environment = os.environ.get("FEDSIM_DATA")
        roots = [*([Path(environment).expanduser()] if environment else []), cache_folder()]
        places = [*(root / folder for root in roots for folder in folders), *more_places]
    if found := next((place for place in places if has_files(place)), None):
        return found
    if data_dir is not None:
        raise FileNotFoundError(f"data_dir = {data_dir!r} does not hold {name}; {remedy}")
    try:
        download(cache_folder())
    except (OSError, RuntimeError) as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise FileNotFoundError(
            f"{name} was not found and the download failed ({reason}); {remedy}, or let it be downloaded with a network"
        ) from error
    return next(place for folder in folders if has_files(place := cache_folder() / folder))


def user_path(path: str) -> Path:
    """Return a file or folder of the user's own: as it stands, else below ``$FEDSIM_DATA``.

    Raises
    ------
    FileNotFoundError
        If it is in neither place.
    """
    if found := existing_path(path):
        return found
    looked = " and ".join(str(place.absolute()) for place in _user_places(path))
    raise FileNotFoundError(f"path = {path!r} is not there (looked at {looked}); give its path, or set $FEDSIM_DATA")


def existing_path(path: str) -> Path | None:
    """Return what `user_path` returns, or None if it is not there."""
    return next((place for place in _user_places(path) if place.exists()), None) if path else None


def _user_places(path: str) -> list[Path]:
    given = Path(os.path.expanduser(path))  # noqa: PTH111 (Path's own raises for a user that does not exist)
    environment = os.environ.get("FEDSIM_DATA")
    return [given, *([Path(environment).expanduser() / given] if environment and not given.is_absolute() else [])]


def fingerprint(place: Path) -> str:
    """Return eight hexadecimal digits: of a file's content, or of a folder's files, their sizes and times of change."""
    if place.is_file():
        status = place.stat()
        return _of_content(place, status.st_size, status.st_mtime_ns)
    listing = []
    for path in sorted(path for path in place.rglob("*") if path.is_file()):
        status = path.stat()
        listing.append([path.relative_to(place).as_posix(), status.st_size, status.st_mtime_ns])
    return sha256(json.dumps(listing).encode()).hexdigest()[:8]


@lru_cache
def _of_content(path: Path, size: int, changed: int) -> str:
    """Read a file once for all runs of a sweep, unless its size or time of change is another."""
    with path.open("rb") as file:
        return file_digest(file, "sha256").hexdigest()[:8]
