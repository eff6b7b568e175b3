"""Where data are found on this machine, and where downloads and caches are kept."""

import os
from collections.abc import Callable, Sequence
from pathlib import Path

from fedsim.reading import check_file, existing_path, user_places


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
    """Return the folder of a known data set: the first one that ``has_files`` accepts, else the downloaded one.

    Parameters
    ----------
    data_dir
        The data set's folder, or one that contains one of ``folders``; if given, no other is searched and nothing is
        downloaded. Default: one of ``folders`` in ``$FEDSIM_DATA`` or in the folder of downloads.
    download
        Function that puts the data into one of ``folders`` in the folder that it is given.
    needs
        Description of the files needed, for the message.
    more_places
        Further folders to search before a download.

    Raises
    ------
    FileNotFoundError
        If the data are not found and cannot be downloaded; the message says where to put them.
    """
    remedy = f"give the folder with {needs} as [data] data_dir, or put it into $FEDSIM_DATA as {folders[0]}"
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
            f"{name} was not found and the download failed ({reason}); {remedy}, or connect to a network"
        ) from error
    return next(place for folder in folders if has_files(place := cache_folder() / folder))


def user_path(path: str) -> Path:
    """Return a user's file or folder: as given, else relative to ``$FEDSIM_DATA``.

    Raises
    ------
    OSError
        If it does not exist in either place, or is no file and no folder.
    """
    if found := existing_path(path):
        check_file(found)
        return found
    looked = " and ".join(str(place.absolute()) for place in user_places(path))
    raise FileNotFoundError(
        f"path = {path!r} does not exist (looked at {looked}); correct the path, or set $FEDSIM_DATA"
    )


def split_file(path: str) -> tuple[Path | None, str]:
    """Return a user's file, None if it does not exist, and the name of a part of it that may follow after a colon."""
    if found := existing_path(path):
        return found, ""
    file, _, part = path.rpartition(":")
    return existing_path(file), part
