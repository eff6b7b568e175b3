"""The small language that names groups of layers."""

import re
from collections.abc import Callable, Collection

DEEPEST = 50  # parentheses and complements in each other, far from what Python can nest


def parse(expression: str, names: Collection[str], pattern: Callable[[str], set[str]]) -> set[str]:
    """Return the layers that an expression names.

    Parameters
    ----------
    names
        All layers, for complements.
    pattern
        Returns the layers that match a single pattern, without operators.

    Raises
    ------
    ValueError
        If the expression cannot be parsed, or as ``pattern`` does.
    """
    return _Parser(expression, names, pattern).parse()


class _Parser:
    """Recursive descent over ``sum := term (("|" | "-") term)*``, ``term := "!" term | "(" sum ")" | pattern``."""

    # A minus is an operator only between spaces: module names may contain one.
    TOKEN = re.compile(r"\s*(?:(?P<op>[()|!]|(?<=\s)-(?=\s))|(?P<pattern>[^\s()|!]+))")

    def __init__(self, expression: str, names: Collection[str], pattern: Callable[[str], set[str]]) -> None:
        self.expression = expression
        self.names = set(names)
        self.pattern = pattern
        self.depth = 0
        self.tokens = [match[0].strip() for match in self.TOKEN.finditer(expression)]

    def parse(self) -> set[str]:
        chosen = self.sum()
        if self.tokens:
            raise self.error(f"{self.tokens[0]!r} is left over")
        return chosen

    def sum(self) -> set[str]:
        chosen = self.term()
        while self.tokens and self.tokens[0] in ("|", "-"):
            operator, right = self.tokens.pop(0), self.term()
            chosen = chosen | right if operator == "|" else chosen - right
        return chosen

    def term(self) -> set[str]:
        token = self.tokens.pop(0) if self.tokens else ""
        self.depth += 1
        if self.depth > DEEPEST:
            raise self.error(f"parentheses and complements are nested more than {DEEPEST} deep")
        chosen = self.term_of(token)
        self.depth -= 1
        return chosen

    def term_of(self, token: str) -> set[str]:
        if token == "!":
            return self.names - self.term()
        if token == "(":
            chosen = self.sum()
            if not self.tokens or self.tokens.pop(0) != ")":
                raise self.error("a closing parenthesis is missing")
            return chosen
        if token in ("", "|", "-", ")"):
            raise self.error("a layer pattern is missing" + (f" before {token!r}" if token else ""))
        return self.pattern(token)

    def error(self, problem: str) -> ValueError:
        return ValueError(
            f"layer group {self.expression!r} cannot be read: {problem}; "
            "write for instance 'body', 'conv1 | head', '!head' or 'all - norm'"
        )
