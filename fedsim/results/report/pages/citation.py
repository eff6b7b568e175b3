"""BibTeX entries of fedsim, of its barriers, and of the methods that runs have used."""

import re
from collections.abc import Sequence

from fedsim import __version__
from fedsim.config.choices import CATALOGUES
from fedsim.results.report.comparing.latex import escape_latex
from fedsim.results.result import Result

# Of a kind that every style knows: not all of them know software.
FEDSIM = """@misc{{fedsim,
  author = {{{{fedsim contributors}}}},
  title = {{fedsim: federated learning with partial layer aggregation and layer-wise barriers}},
  note = {{Version {version}}},
}}"""
BARRIERS = """@inproceedings{adilova2024layerwise,
  title = {Layer-wise Linear Mode Connectivity},
  author = {Adilova, Linara and Andriushchenko, Maksym and Kamp, Michael and Fischer, Asja and Jaggi, Martin},
  booktitle = {International Conference on Learning Representations},
  year = {2024},
  note = {arXiv:2307.06966},
}"""
# As the docstrings of strategies have them: authors, year, title, and the number on arXiv.
REFERENCE = re.compile(
    r"(?P<who>[A-Z][\w-]+(?:, [A-Z][\w-]+)*(?: and [A-Z][\w-]+| et al\.)?) (?P<year>\d{4}), (?P<title>[^;]+?),\s+"
    r"arXiv\s+(?P<arxiv>\d{4}\.\d{4,5})"
)


def bibtex(results: Sequence[Result]) -> str:
    """Return the entries, those of methods as far as their references name them."""
    entries = [FEDSIM.format(version=__version__)]
    if any(len(result.barriers) for result in results):
        entries.append(BARRIERS)
    catalogue = CATALOGUES["strategies"]
    names = dict.fromkeys(catalogue.name_of(result.config.strategy) for result in results)
    known = set(catalogue.all_names)  # those of the user's are not imported
    for name in names:
        entry = _entry(catalogue.describe(name)[1]) if name in known else ""
        number = re.search(r"arXiv:[\d.]+", entry)
        if number and number[0] not in "\n".join(entries):
            entries.append(entry)
    return "\n\n".join(entries) + "\n"


def _entry(reference: str) -> str:
    """Return the entry of the first reference of a text; empty if there is none."""
    found = REFERENCE.search(reference)
    if found is None:
        return ""
    authors = found["who"].replace(" et al.", " and others").replace(", ", " and ")
    key = f"{re.sub(r'[^a-z]', '', found['who'].split()[0].lower())}{found['year']}{found['arxiv'].replace('.', '')}"
    fields = {
        "title": f"{{{escape_latex(' '.join(found['title'].split()))}}}",  # styles change no case within braces
        "author": escape_latex(authors),
        "journal": f"arXiv preprint arXiv:{found['arxiv']}",
        "year": found["year"],
    }
    return "\n".join([f"@article{{{key},", *(f"  {name} = {{{text}}}," for name, text in fields.items()), "}"])
