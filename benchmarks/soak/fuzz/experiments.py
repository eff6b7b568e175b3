"""Experiments' files and changes of their settings, from a right one by a few changes."""

import copy
from collections.abc import Mapping
from functools import cache
from typing import Any, cast

import tomli_w
from hypothesis import strategies as st
from hypothesis.strategies import SearchStrategy

from benchmarks.soak.fuzz.inputs import Input
from benchmarks.soak.fuzz.words import expressions, integers, names, numbers, texts, values
from fedsim.config.assignments import parse_assignment
from fedsim.config.choices import CATALOGUES
from fedsim.config.config import Config

FILE = "study.toml"
RIGHT: dict[str, Any] = {
    "rounds": 2,
    "clients": 3,
    "data": {"name": "toy", "examples": 60},
    "partition": {"scheme": "iid"},
    "model": {"name": "mlp", "hidden": [4, 4]},
    "strategy": {"name": "layer_set", "shared": "body"},
}
MODULES = {
    "models.py": b"from torch import nn\n\n\ndef plain(shape, classes):\n    "
    b"return nn.Sequential(nn.Flatten(), nn.Linear(64, classes))\n",
    "broken.py": b"def f(:\n",
    "empty.py": b"",
}
EXPRESSIONS = ("strategy.shared", "model.freeze", "model.head", "barriers.groups", "evaluation.fine_tune_layers")
Changes = dict[str, Any]


@cache
def settings() -> dict[str, Any]:
    """Return all settings, dotted, with a right value where one is known."""
    found: dict[str, Any] = {}
    for name, info in Config.model_fields.items():
        kind = info.annotation
        inner = getattr(kind, "model_fields", None) or getattr(kind, "__dataclass_fields__", None)
        for key, each in (inner or {}).items():
            found[f"{name}.{key}"] = getattr(each, "default", None)
        if not inner:
            found[name] = info.default
    for catalogue in CATALOGUES.values():
        for entry in catalogue.entries:
            for option in catalogue.described_options(entry):
                found[f"{catalogue.table}.{option.name}"] = _value_of(option.default)
    return found


def _value_of(text: str) -> Any:
    return None if text in ("unset", "required") else parse_assignment(f"x={text}")[1]


@cache
def chosen() -> dict[str, list[str]]:
    """Return the settings that choose something, with all that they can choose."""
    return {f"{each.table}.{each.key}": list(each.entries) for each in CATALOGUES.values()}


@cache
def value_of(key: str) -> SearchStrategy[Any]:
    """Values of a setting, many of which are right."""
    kinds: list[SearchStrategy[Any]] = [values()]
    if key in chosen():
        kinds += [st.sampled_from(chosen()[key]), st.sampled_from(chosen()[key]), names()]
    elif key in EXPRESSIONS:
        kinds += [expressions(), expressions(), st.lists(expressions(), max_size=3)]
    else:
        right = settings().get(key)
        kinds += [st.just(right)] if isinstance(right, int | float | str | list) else []
        kinds += [integers(), numbers()] if isinstance(right, int | float) else [texts()]
    return st.one_of(kinds)


@cache
def pair_of(key: str) -> SearchStrategy[tuple[str, Any]]:
    """Pairs of a setting and a value."""
    return st.tuples(st.just(key), value_of(key))


@cache
def keys() -> SearchStrategy[str]:
    """Names of settings, most of which there are."""
    known = st.sampled_from(sorted(settings()))
    wrong = st.one_of(
        texts(), known.map(lambda key: key[:-1]), st.sampled_from(["data", "sweep", "tune", "expect", "local"])
    )
    return st.one_of(known, known, known, known, wrong)


@cache
def changes(most: int = 4) -> SearchStrategy[Changes]:
    """Values of a few settings."""
    one = keys().flatmap(pair_of)
    return st.lists(one, min_size=1, max_size=most).map(dict)


def _changed(changed: Changes, swept: Changes, removed: list[str]) -> dict[str, Any]:
    tree = copy.deepcopy(RIGHT)
    for key, value in changed.items():
        table, dot, name = key.partition(".")
        if dot and isinstance(tree.setdefault(table, {}), dict):
            tree[table][name] = value
        else:
            tree[key] = value
    for key in removed:
        tree.pop(key, None)
    if swept:
        tree.setdefault("sweep", swept)
    return tree


def toml_of(tree: Mapping[str, Any]) -> bytes:
    """Return an experiment's file."""
    return tomli_w.dumps(cast("dict[str, Any]", tree)).encode(errors="replace")


def _damaged(text: bytes, at: float, change: bytes, length: int) -> bytes:
    start = int(at * len(text))
    return text[:start] + change + text[start + length :]


def files() -> SearchStrategy[bytes]:
    """Experiments' files: settings that are wrong, or text that is."""
    swept = st.one_of(
        st.just({}), st.dictionaries(keys(), st.one_of(st.lists(values(), max_size=2), values()), max_size=2)
    )
    removed = st.lists(st.sampled_from(sorted(RIGHT)), max_size=1)
    trees = st.builds(_changed, changes(), swept, st.one_of(st.just([]), st.just([]), removed)).map(toml_of)
    odd = st.sampled_from(
        [
            b"\xef\xbb\xbf",
            b"\xff",
            b"\x00",
            b"[" * 3000,
            b"x = " + b"9" * 5000,
            b"[[expect]]\n",
            b"[data]\n",
            b"'''",
            b"\r",
        ]
    )
    pieces = st.one_of(odd, st.binary(max_size=4), st.text(max_size=4).map(str.encode))
    damaged = st.builds(_damaged, trees, st.floats(0, 1), pieces, st.integers(0, 5))
    return st.one_of(trees, trees, trees, damaged)


def dry_runs(file: SearchStrategy[bytes]) -> SearchStrategy[Input]:
    """Dry runs of files."""
    return file.map(lambda text: Input(("run", FILE, "--dry-run"), {FILE: text, **MODULES}))


def configs() -> SearchStrategy[Input]:
    """Experiments' files of all kinds."""
    return dry_runs(files())


def custom_names() -> SearchStrategy[Input]:
    """Experiments with made-up names of parts."""
    one = st.sampled_from(sorted(chosen())).flatmap(lambda key: st.tuples(st.just(key), names()))
    return dry_runs(one.map(lambda pair: toml_of(_changed(dict([pair]), {}, []))))


def layer_expressions() -> SearchStrategy[Input]:
    """Experiments with made-up layer expressions."""
    one = st.sampled_from(EXPRESSIONS).flatmap(lambda key: st.tuples(st.just(key), _expression_of(key)))
    return dry_runs(one.map(lambda pair: toml_of(_changed(dict([pair]), {}, []))))


@cache
def _expression_of(key: str) -> SearchStrategy[Any]:
    return st.lists(expressions(), min_size=1, max_size=3) if key == "barriers.groups" else expressions()


def assignments() -> SearchStrategy[Input]:
    """Draw changes of settings on the command line."""
    odd = st.sampled_from(
        ["#", "=", "#2", "rounds", "rounds=", "=3", "rounds=3\nclients=2", "rounds=2#", "a.b.c.d=1", "sweep=3"]
    )
    right = changes(1).map(lambda changed: next(f"{key}={_toml(value)}" for key, value in changed.items()))
    wrong = st.builds("{}={}".format, keys(), texts())
    deep = st.sampled_from(["x=" + "[" * 3000, "rounds=" + "9" * 5000, "x=" + "{a=" * 500, "x." * 1000 + "y=1"])
    each = st.one_of(right, right, right, wrong, odd, deep, texts())
    return st.lists(each, min_size=1, max_size=3).map(_with_assignments)


def _toml(value: Any) -> str:
    return toml_of({"x": value}).decode().strip().removeprefix("x = ")


def _with_assignments(texts: list[str]) -> Input:
    options = [part for text in texts for part in ("--set", text)]
    return Input(("run", FILE, "--dry-run", *options), {FILE: toml_of(RIGHT), **MODULES})
