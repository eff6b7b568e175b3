"""``fedsim list``: what can be chosen by name, and what can be set.

A list of all names imports none of them; one name shows its options.
"""

from collections.abc import Iterable, Sequence
from textwrap import wrap

from rich import box
from rich.table import Table
from rich.text import Text

from fedsim.cli.terminal import print_lines, print_texts
from fedsim.config.catalogue import Catalogue
from fedsim.config.choices import CATALOGUES, Kind
from fedsim.config.described import described_tables
from fedsim.config.names import canonical, meant
from fedsim.console import PlainConsole
from fedsim.errors import ConfigError
from fedsim.options import as_toml

INDENT = 4 * " "
OURS = "fedsim"  # the source of what has no references, and is no custom entry


def list_all(kind: Kind) -> None:
    """Print the names of a kind, a line about each, and its source."""
    catalogue = CATALOGUES[kind]
    plain = {each.entry for each in catalogue.names.values() if not each.options}
    # Some are listed by their name in the literature.
    rows = [(name, *catalogue.describe(name)) for name in catalogue.all_names if name not in plain]
    PlainConsole().print(_table(("name", "what it does", "source"), rows))
    print_lines(f"options of one: fedsim list {kind} NAME")


def list_one(kind: Kind, name: str) -> None:
    """Print what an entry does, its options and its source."""
    catalogue = CATALOGUES[kind]
    name = canonical(name, catalogue.all_names)
    summary, source = catalogue.describe(name)
    console = PlainConsole()
    console.print(Text(name, style="bold"), f" {summary}")
    if options := _options(catalogue, name):
        console.print(_table(("option", "default", "range", "meaning"), options))
    if named := catalogue.names.get(name):
        written = ", ".join(f"{key} = {as_toml(value)}" for key, value in named.options.items())
        console.print(f"Recorded as: {catalogue.key} = {as_toml(named.entry)}{written and f', {written}'}")
    if canonical(name, catalogue.entries) in catalogue.entries or name in catalogue.names or source != OURS:
        console.print(f"Source: {source}")


def list_settings(name: str | None) -> None:
    """Print the tables of an experiment's file, or the keys of one table or of one name, such as ``lr``.

    Raises
    ------
    ConfigError
        If no table and no key has that name.
    """
    tables, console = described_tables(), PlainConsole()
    if name is None:
        console.print(_table(("table", "what it is for"), [(each, of.about[0]) for each, of in tables.items()]))
        print_lines("keys of one: fedsim list settings TABLE")
        return
    if name in tables:
        console.print(Text(tables[name].title, style="bold"))
        print_texts(*map(_plain, tables[name].about), "")
        keys = tables[name].keys
    else:
        every = [key for of in tables.values() for key in of.keys]
        keys = [key for key in every if f".{key.key}".endswith(f".{name}")]
        if not keys:
            found = meant(name, [*tables, *(key.key for key in every)])
            raise ConfigError(
                f"no table and no key is called {name!r}; {f'did you mean {found!r}? ' if found else ''}tables are: "
                f"{', '.join(tables)}"
            )
    for key in keys:
        console.print(Text(_plain(key.heading), style="bold"))
        print_lines(*wrap(_plain(key.text), console.width, initial_indent=INDENT, subsequent_indent=INDENT))
    for kind, catalogue in CATALOGUES.items():
        if catalogue.table == name:
            print_lines("", f"further keys are options of what is chosen: fedsim list {kind} NAME")


def _plain(text: str) -> str:
    return text.replace("`", "")


def _options(catalogue: Catalogue, name: str) -> list[tuple[str, str, str, str]]:
    fixed = catalogue.names[name].options if name in catalogue.names else {}
    return [
        (option.name, option.default, option.range, option.text)
        for option in catalogue.described_options(name)
        if option.name not in fixed
    ]


def _table(headings: Sequence[str], rows: Iterable[Sequence[str]]) -> Table:
    table = Table(box=box.SIMPLE)
    for heading in headings:
        table.add_column(heading, overflow="fold")
    for row in rows:
        table.add_row(*map(_plain, row))
    return table
