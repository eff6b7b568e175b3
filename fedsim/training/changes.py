"""Which attributes of its object a method's code sets or changes, as far as its source tells."""

import ast
import inspect
import textwrap
from collections.abc import Iterator

CHANGES = {"append", "extend", "insert", "add", "update", "setdefault", "pop", "clear", "copy_", "add_", "mul_"}


def changed_by(owner: type, method: str, base: type, *, only_updates: bool = False) -> Iterator[str]:
    """Yield the attributes of ``self`` that a method of a class changes, itself or by a method of ``self`` it calls.

    Parameters
    ----------
    base
        Class whose own methods are left out.
    only_updates
        Whether to leave out attributes whose new value does not depend on the old one.
    """
    seen, names = set(), [method]
    while names:
        name = names.pop(0)
        function = getattr(owner, name, None)
        if name in seen or not inspect.isfunction(function) or function is getattr(base, name, None):
            continue
        seen.add(name)
        try:
            tree = ast.parse(textwrap.dedent(inspect.getsource(function)))
        except (OSError, TypeError, SyntaxError):
            continue
        for node in ast.walk(tree):
            for target in _changed(node):
                if (found := _own(target)) and not (only_updates and _is_new(node, found)):
                    yield found
            if isinstance(node, ast.Call) and (called := _attribute_of_self(node.func)):
                names.append(called)


def _changed(node: ast.AST) -> Iterator[ast.expr]:
    match node:
        case ast.Assign(targets=targets):
            for target in targets:
                yield from target.elts if isinstance(target, ast.Tuple) else [target]
        case ast.AugAssign(target=target) | ast.AnnAssign(target=target):
            yield target
        case ast.Call(func=ast.Attribute(value=value, attr=attr)) if attr in CHANGES:
            yield value


def _is_new(node: ast.AST, name: str) -> bool:
    """Return whether an attribute gets a value that does not depend on its old one."""
    if not isinstance(node, ast.Assign | ast.AnnAssign) or node.value is None:
        return False
    return all(_attribute_of_self(each) != name for each in ast.walk(node.value) if isinstance(each, ast.expr))


def _own(target: ast.expr) -> str | None:
    """Return the attribute of ``self`` that a target is, or is a part of."""
    while isinstance(target, ast.Subscript | ast.Attribute):
        if found := _attribute_of_self(target):
            return found
        target = target.value
    return None


def _attribute_of_self(node: ast.expr) -> str | None:
    if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "self":
        return node.attr
    return None
