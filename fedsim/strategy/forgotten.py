"""What a strategy's code keeps for the next round where no checkpoint has it."""

import ast
import inspect
import textwrap
from collections.abc import Iterator

from fedsim.strategy.hooks import Hooks

SAVED = {None, "memory", "global_model", "clients"}  # or set again in each round
CHANGES = {"append", "extend", "insert", "add", "update", "setdefault", "pop", "clear", "copy_", "add_", "mul_"}


def forgotten_by(strategy: type[Hooks]) -> str | None:
    """Return the first attribute other than the memory that `aggregate`, the last hook of a round, sets or changes.

    None if it changes nothing, its source is not known, or the class writes its own state.
    """
    if strategy.state is not Hooks.state:
        return None
    try:
        tree = ast.parse(textwrap.dedent(inspect.getsource(strategy.aggregate)))
    except (OSError, TypeError, SyntaxError):
        return None
    changed = (_own(target) for node in ast.walk(tree) for target in _changed(node))
    return next((name for name in changed if name not in SAVED), None)


def _changed(node: ast.AST) -> Iterator[ast.expr]:
    match node:
        case ast.Assign(targets=targets):
            for target in targets:
                yield from target.elts if isinstance(target, ast.Tuple) else [target]
        case ast.AugAssign(target=target) | ast.AnnAssign(target=target):
            yield target
        case ast.Call(func=ast.Attribute(value=value, attr=attr)) if attr in CHANGES:
            yield value


def _own(target: ast.expr) -> str | None:
    """Return the attribute of ``self`` that a target is, or is a part of."""
    while isinstance(target, ast.Subscript | ast.Attribute):
        if isinstance(target, ast.Attribute) and isinstance(target.value, ast.Name) and target.value.id == "self":
            return target.attr
        target = target.value
    return None
