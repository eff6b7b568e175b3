"""The reference: a line ``<!-- generated: settings -->`` of a page is replaced by what the code says of itself."""

import re

import commands
import members
import named
import settings
from sphinx.application import Sphinx

LINE = re.compile(r"^<!-- generated: (?P<what>\w+)(?P<words>.*) -->$", re.MULTILINE)
WRITERS = {
    "settings": settings.write,
    "named": named.write,
    "members": members.write,
    "commands": commands.write,
}


def fill_in(app: Sphinx, docname: str, content: list[str]) -> None:
    """Replace the lines of a page that ask for generated text."""
    content[0] = LINE.sub(lambda line: WRITERS[line["what"]](*line["words"].split()), content[0])


def setup(app: Sphinx) -> dict[str, bool]:
    """Sphinx calls this."""
    app.connect("source-read", fill_in)
    return {"parallel_read_safe": True}
