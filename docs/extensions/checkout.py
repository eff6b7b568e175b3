"""Links from pages to folders of the repository, which are no pages: they lead to the folder in the checkout."""

import os
from pathlib import Path

from docutils import nodes
from sphinx.addnodes import pending_xref
from sphinx.application import Sphinx


def link_folders(app: Sphinx, page: nodes.document) -> None:
    """Make links to folders that exist lead there, relative to the built page; others stay, and are a warning."""
    root = Path(app.srcdir).resolve()
    docname = app.env.docname
    built = (Path(app.outdir) / app.builder.get_target_uri(docname)).parent
    for link in list(page.findall(pending_xref)):
        folder = (root / docname).parent / link["reftarget"]
        if link["reftype"] == "myst" and folder.is_dir() and folder.resolve().is_relative_to(root):
            relative = os.path.relpath(folder.resolve(), built.resolve())
            link.replace_self(nodes.reference("", "", *link.children, refuri=f"{relative}/", internal=False))


def setup(app: Sphinx) -> dict[str, bool]:
    """Sphinx calls this."""
    app.connect("doctree-read", link_folders)
    return {"parallel_read_safe": True}
