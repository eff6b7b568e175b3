"""The script that draws charts in a page: Vega, Vega-Lite and Vega-Embed, as vl-convert bundles them."""

from functools import cache
from importlib.metadata import version
from importlib.resources import files

import vl_convert
from filelock import FileLock

from fedsim.data.places import cache_folder
from fedsim.results.files import write_whole


@cache
def vega_script() -> str:
    """Return the script, from the cache where this version has been bundled before, which takes seconds."""
    path = cache_folder() / f"vega-of-vl-convert-{version('vl-convert-python')}.js"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(path.with_suffix(".lock")):  # one process bundles, the others wait
            if not path.exists():
                write_whole(path, _bundle())
            return path.read_text(encoding="utf-8")
    except OSError:  # of a home that cannot be written; what is not kept is made again
        return path.read_text(encoding="utf-8") if path.is_file() else _bundle()


def _bundle() -> str:
    notice = files(__package__).joinpath("vega_notice.txt").read_text(encoding="utf-8")
    return f"/*!\n{notice}*/\n{vl_convert.javascript_bundle('window.vegaEmbed = vegaEmbed;')}"
