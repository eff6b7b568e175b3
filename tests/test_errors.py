"""An error is one line: its message, its type, and the place in the user's code where it came from."""

import errno
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from fedsim.errors import error_line, is_of_the_user, is_out_of_memory, message_of, system_line
from fedsim.models.layers import Layers


def caught(function: Callable[[], object]) -> BaseException:
    with pytest.raises(Exception) as found:  # noqa: PT011 (whatever it is)
        function()
    error = found.value
    assert error.__traceback__ is not None
    return error.with_traceback(error.__traceback__.tb_next)  # without the line above


def of_this_file(name: str) -> Callable[[], object]:
    """Return a function that raises in a module of a user's, on its line 3."""
    bodies = {
        "torch": "torch.nn.Linear(3, 4)(torch.zeros(2, 5))",
        "json": "json.loads('{')",
        "ours": "Layers.of(torch.nn.Linear(1, 1)).group('nothing*')",
        "own": "raise KeyError('x')",
        "silent": "raise ValueError",
        "lines": "raise ValueError('one\\n   two' + 1000 * ' more')",
    }
    code = compile(f"\ndef function():\n    {bodies[name]}\n", "/home/me/model.py", "exec")
    space = {"torch": torch, "json": json, "Layers": Layers}
    exec(code, space)
    return space["function"]  # type: ignore[return-value]


@pytest.mark.parametrize(
    ("name", "message", "kind"),
    [
        ("torch", "mat1 and mat2 shapes cannot be multiplied (2x5 and 3x4)", "RuntimeError"),
        ("json", "Expecting property name enclosed in double quotes", "JSONDecodeError"),
        ("ours", "layer pattern 'nothing*' matches nothing", "ValueError"),
        ("own", "'x'", "KeyError"),
        ("silent", "", "ValueError"),
        ("lines", "one two more more", "ValueError"),
    ],
)
def test_an_error_names_the_innermost_line_of_the_users_code(name: str, message: str, kind: str) -> None:
    error = caught(of_this_file(name))
    line = error_line(error)
    assert line.startswith(f"{kind}: " if message else f"{kind} (")
    assert message in line
    assert line.endswith(" (model.py, line 3)")
    assert "\n" not in line
    assert len(line) < 450
    assert is_of_the_user(error)


def test_an_error_without_code_of_the_users_names_ours_or_else_a_librarys() -> None:
    error = caught(lambda: Layers.of(torch.nn.Linear(1, 1)).group("nothing*"))
    error = error.with_traceback(error.__traceback__.tb_next)  # type: ignore[union-attr] # without this file's line
    assert not is_of_the_user(error)
    assert " (layers.py, line " in error_line(error)
    error = caught(lambda: json.loads("{"))
    assert " (decoder.py, line " in error_line(error.with_traceback(error.__traceback__.tb_next))  # type: ignore[union-attr]
    assert error_line(ValueError("no trace")) == "ValueError: no trace"


def test_a_syntax_error_names_the_line_with_the_mistake(tmp_path: Path) -> None:
    error = caught(lambda: compile("\nx = = 1\n", str(tmp_path / "mine.py"), "exec"))
    assert error_line(error) == "SyntaxError: invalid syntax (mine.py, line 2)"
    assert is_of_the_user(error)


def test_memory_that_is_not_enough_is_told_by_its_size_and_no_other_error_is_it() -> None:
    failures = []
    for allocate in (lambda: torch.empty(2**58), lambda: np.empty(2**58), lambda: torch.empty(-1), lambda: 1 / 0):
        with pytest.raises((RuntimeError, MemoryError, ZeroDivisionError)) as caught:
            allocate()
        failures.append(caught.value)
    assert [is_out_of_memory(error) for error in failures] == [True, True, False, False]
    assert message_of(failures[0]) == f"not enough memory for {2**60:,} bytes at once"
    assert "Unable to allocate 2.00 EiB" in message_of(failures[1])


def test_an_error_of_the_system_names_the_file_and_what_helps_on_a_full_disk() -> None:
    full = OSError(errno.ENOSPC, "No space left on device", "runs/a")
    assert system_line(full) == "runs/a: No space left on device; free some space, or choose another folder"
    assert system_line(PermissionError(errno.EACCES, "Permission denied", b"a", None, b"b")) == (
        "a -> b: Permission denied"
    )
