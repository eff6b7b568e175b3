"""The sidebar, from the lists of ``docs/index.md``, which the repository's web view shows too."""

import re

from sphinx.application import Sphinx

SECTION = re.compile(r"^## (?P<title>.+)\n(?P<body>(?:(?!^## ).*\n?)*)", re.MULTILINE)
LINK = re.compile(r"\]\((?!http)(?P<page>[^)#\s]+)\.(?:md|ipynb)(?:#\S*)?\)")
TREE = """
```{{toctree}}
:hidden:
:caption: {title}

{pages}
```
"""


def list_pages(app: Sphinx, docname: str, content: list[str]) -> None:
    """Append a hidden table of contents per section of the first page, with the pages that it links to."""
    if docname != app.config.root_doc:
        return
    trees = []
    for section in SECTION.finditer(content[0]):
        pages = dict.fromkeys(LINK.findall(section["body"]))
        if pages:
            trees.append(TREE.format(title=section["title"], pages="\n".join(pages)))
    content[0] += "".join(trees)


def setup(app: Sphinx) -> dict[str, bool]:
    """Sphinx calls this."""
    app.connect("source-read", list_pages)
    return {"parallel_read_safe": True}
