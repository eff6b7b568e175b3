"""Commands with made-up options and arguments."""

from functools import cache

import click
import typer
from hypothesis import strategies as st
from hypothesis.strategies import SearchStrategy

from benchmarks.soak.fuzz.experiments import FILE, MODULES, RIGHT, toml_of
from benchmarks.soak.fuzz.inputs import Input
from benchmarks.soak.fuzz.words import MARKUP, ODD, expressions, integers, numbers, texts
from fedsim.cli.commands import app

PATHS = (
    FILE,
    "missing",
    "missing.toml",
    ".",
    "..",
    "/",
    "folder",
    "models.py",
    "file/below",
    "/dev/null",
    "a.npz",
    "x.safetensors",
)
NAMES = (
    "strategies",
    "partitions",
    "features",
    "models",
    "data",
    "mlp",
    "toy",
    "fedprox",
    "all",
    "bytes=5MB",
    "passes=1M",
)
SAFE_OUT = (
    "written",
    "study.toml",
    "",
    "a/b/c",
    "/dev/null",
    "/dev/null/x",
)  # folders in which something may be written


@cache
def commands() -> dict[str, click.Command]:
    """Return the commands by their names."""
    group = typer.main.get_command(app)
    assert isinstance(group, click.Group)
    return dict(group.commands)


def arguments() -> SearchStrategy[Input]:
    """Commands with some of their options, in any order; ``run`` only shows what it would do."""
    return st.sampled_from(sorted(commands())).flatmap(_of_command).map(_input)


@cache
def _of_command(name: str) -> SearchStrategy[tuple[str, ...]]:
    options = [each for each in commands()[name].params if isinstance(each, click.Option)]
    values = st.one_of(
        st.sampled_from(PATHS),
        st.sampled_from(NAMES),
        st.sampled_from([*ODD, *MARKUP]),
        texts(),
        numbers().map(str),
        integers().map(str),
    )
    given = st.sampled_from(options).flatmap(lambda option: _option(option, values)) if options else st.just(())
    wrong = st.sampled_from([("--wrong",), ("--",), ("-",), ("-x", "1"), ("--seed",), ("--out",), ("-h",)])
    positional = st.lists(
        st.one_of(st.sampled_from(PATHS), st.sampled_from(PATHS), st.sampled_from(NAMES), texts()), max_size=3
    )
    parts = st.lists(st.one_of(given, given, given, wrong), max_size=4)
    last = ("--dry-run",) if name == "run" else ()
    return st.builds(
        lambda first, some: (name, *last, *first, *(each for part in some for each in part)), positional, parts
    )


def _option(option: click.Option, values: SearchStrategy[str]) -> SearchStrategy[tuple[str, ...]]:
    names = st.sampled_from([*option.opts, *option.secondary_opts])
    if option.is_flag:
        return names.map(lambda name: (name,))
    if option.name in ("out", "save", "pfllib", "csv", "markdown", "latex", "to"):
        values = st.sampled_from([*SAFE_OUT, "written.npz", "written.safetensors", "written.csv"])
    elif isinstance(option.type, click.Choice):
        values = st.one_of(st.sampled_from([str(each) for each in option.type.choices]), values)
    elif option.name == "groups":
        values = expressions()
    return st.tuples(names, values)


def _input(given: tuple[str, ...]) -> Input:
    return Input(given, {FILE: toml_of(RIGHT), "folder/empty": b"", "file": b"", **MODULES})
