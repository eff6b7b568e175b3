"""How ``make docs`` builds the site: Sphinx reads the repository's Markdown in place, and fills in the reference."""

import os
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "docs" / "extensions")]
# Kernels of the notebooks import the checkout too, and do not compete for cores.
os.environ["PYTHONPATH"] = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
os.environ.setdefault("OMP_NUM_THREADS", "1")

import fedsim  # noqa: E402 (the line above says where it is)

project, author, copyright = "fedsim", "the fedsim authors", "the fedsim authors"  # noqa: A001 (Sphinx's name)
version = release = fedsim.__version__

# The sources are those of the whole repository, so that pages link to the README and to experiments as on its web view.
root_doc = "docs/index"
include_patterns = ["README.md", "CONTRIBUTING.md", "CHANGELOG.md", "docs/**", "experiments/**/*.md"]
exclude_patterns = ["docs/extensions", "docs/templates", "**/.ipynb_checkpoints"]
source_suffix = {".md": "myst-nb", ".ipynb": "myst-nb"}

extensions = ["myst_nb", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "generated", "members", "sidebar", "checkout"]
myst_heading_anchors = 4
myst_enable_extensions = ["dollarmath"]
# Tables of experiments are reached from the pages about them; a test sees to it that pages of docs/ are listed.
suppress_warnings = ["toc.not_included"]

nb_execution_mode = "force"
nb_execution_in_temp = True
nb_execution_raise_on_error = True
nb_execution_timeout = 300
nb_output_stderr = "remove"  # lines of progress

autodoc_member_order = "bysource"
autodoc_typehints = "signature"
python_maximum_signature_line_length = 100
napoleon_google_docstring = False
napoleon_use_rtype = False
napoleon_use_param = False  # parameters that share a text share an entry
napoleon_use_ivar = True
napoleon_attr_annotations = False  # signatures have the types
napoleon_custom_sections = [("Attributes", "params_style")]
default_role = "py:obj"
nitpick_ignore_regex = [("py:.*", ".*")]  # types of other libraries; the pages' links and anchors are all checked

html_theme = "furo"
smartquotes = False  # options and code in texts stay as they are typed
html_static_path = ["static"]
html_css_files = ["tables.css"]
html_title = f"fedsim {version}"
html_show_sphinx = False
html_copy_source = False
templates_path = ["templates"]
html_additional_pages = {"index": "first_page.html"}
