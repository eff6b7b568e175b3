"""Values of settings: plausible ones, wrong ones, and those at the ends of what a type holds."""

import math
from datetime import date
from functools import cache
from typing import Any

from hypothesis import strategies as st
from hypothesis.strategies import SearchStrategy

MARKUP = ("[bold]x[/bold]", "[/x]", "$\\frac$", "$x^2$", "%s %(a)s {} {0}", "=1+1", "@x", "<b>&amp;</b>", "\\")
ODD = (
    "",
    " ",
    "\t",
    "\n",
    "x" * 1000,
    "ä",
    "名前",
    "\u202e",
    "\x00",
    "a/b",
    "../..",
    "/",
    "~",
    "-",
    "--out",
    "None",
    "nan",
)
LAYERS = (
    "fc1",
    "fc2",
    "head",
    "body",
    "norm",
    "all",
    "none",
    "frozen",
    "first:1",
    "last:2",
    "fc*",
    "*",
    "fc3",
    "conv1",
)
ODD_LAYERS = (
    "first:0",
    "last:-1",
    "first:x",
    "last:99999999999999999999",
    "[f]c1",
    "fc1.weight",
    "hed",
    "",
    "'",
    "first:",
)
# Nothing that does harm if it is called.
MODULES = (
    "models",
    "missing",
    "broken",
    "empty",
    "json",
    "math",
    "builtins",
    "fedsim",
    "torch.nn",
    ".x",
    "..",
    "",
    "a.b",
)
PARTS = ("plain", "missing", "loads", "sqrt", "dict", "print", "y", "", "__doc__", "plain.x", "Linear", "1x", "a b")


@cache  # as Hypothesis looks into each strategy that it has not seen
def integers() -> SearchStrategy[int]:
    """Small ones, negative ones, and those beyond any memory or any machine word."""
    return st.one_of(st.integers(-3, 12), st.sampled_from([2**31, 2**63 - 1, 2**63, 10**12, 10**30, -(2**63), 10**400]))


@cache
def numbers() -> SearchStrategy[float]:
    """Floating-point numbers, also those that are no numbers."""
    ends = [0.0, -0.0, 0.1, 0.5, 0.9, 1.0, 1.5, -1.0, 1e-320, 1e308, math.inf, -math.inf, math.nan]
    return st.one_of(st.sampled_from(ends), st.floats(-2, 2))


@cache
def expressions() -> SearchStrategy[str]:
    """Layer expressions, by their grammar, some of them wrong."""
    atoms = st.one_of(st.sampled_from(LAYERS), st.sampled_from(ODD_LAYERS), st.text("fc12!|-()*?[]: ", max_size=8))
    operators = st.sampled_from([" | ", " - ", "|", "-", " & ", " ", "||"])

    def longer(inner: SearchStrategy[str]) -> SearchStrategy[str]:
        return st.one_of(
            st.tuples(inner, operators, inner).map("".join),
            inner.map(lambda text: f"!{text}"),
            inner.map(lambda text: f"({text})"),
            st.tuples(inner, st.sampled_from(["(", ")", "!", "|", "-"])).map("".join),
        )

    deep = st.builds(
        lambda n, opened, inner, closed: opened * n + inner + closed * n,
        st.sampled_from([10, 100, 1000, 5000]),
        st.sampled_from(["(", "!", "!(", "fc1|", "fc1 - ("]),
        st.sampled_from(["fc1", "", "all"]),
        st.sampled_from([")", "", "|fc2"]),
    )
    return st.one_of(st.recursive(atoms, longer, max_leaves=6), deep)


@cache
def names() -> SearchStrategy[str]:
    """Names of custom parts, and of nothing; none does harm."""
    pairs = st.builds("{}:{}".format, st.sampled_from(MODULES), st.sampled_from(PARTS))
    prefixed = st.builds("{}{}".format, st.sampled_from(["", "../", "/", "./", "flwr:", ":"]), pairs)
    return st.one_of(pairs, prefixed, st.sampled_from([*ODD, *MARKUP]), st.text("abcxyz:._-/é", max_size=12))


@cache
def texts() -> SearchStrategy[str]:
    """Texts of any kind."""
    return st.one_of(st.sampled_from([*ODD, *MARKUP, *LAYERS]), expressions(), st.text(max_size=20))


@cache
def values() -> SearchStrategy[Any]:
    """Values of TOML of any kind."""
    plain = st.one_of(integers(), numbers(), st.booleans(), texts(), st.just(date(2020, 1, 1)))
    return st.one_of(
        plain,
        st.lists(plain, max_size=3),
        st.dictionaries(st.sampled_from(["a", "name", "x.y", ""]), plain, max_size=2),
        st.lists(st.lists(integers(), max_size=2), max_size=2),
    )
