"""Damaged folders of runs: whatever is done to a file, no command gives other results without a word."""

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np

from benchmarks.soak.cases import Tried, problem_of, problem_of_result, whole_run
from benchmarks.soak.folders import LOCK, LOG, PAGES, run_folder
from benchmarks.soak.forked import Ended, fedsim_command
from benchmarks.soak.moments import Moment, kill_itself
from benchmarks.soak.studies import Study, study_of
from fedsim.seeds import rng

RUN = "RUN"  # stands for the run's folder in a command
COMPARED = ("compare", "runs/study", "--csv", "answer/table.csv", "--out", "answer")
ANSWERS = {
    "run": ("run", "study.toml"),
    "compare": COMPARED,
    "report": ("report", RUN, "--out", "answer"),
    "check": ("check", RUN, "--expect", "expected.toml"),
    "export": ("export", RUN, "--to", "answer/model.safetensors"),
    "export a client's": ("export", RUN, "--client", "1", "--to", "answer/model.safetensors"),
    "verify": ("verify", RUN),
}
EXPECTED = """
[[expect]]
metric = "accuracy"
model = "personalised"
above = 0.1
"""
EACH = 25  # cases of a study, which is run only twice for them
CHANGE = 0.6  # of all changes, those after which a stopped run was killed


@dataclass(frozen=True)
class Answer:
    """What a command gave: what it printed, and the files that it wrote."""

    code: int
    out: str
    files: dict[str, bytes]


def flip(content: bytes, draw: np.random.Generator) -> bytes:
    """Flip a bit."""
    at, bit = int(draw.integers(len(content))), int(draw.integers(8))
    return content[:at] + bytes([content[at] ^ 1 << bit]) + content[at + 1 :]


def cut(content: bytes, draw: np.random.Generator) -> bytes:
    """Keep the beginning, perhaps nothing."""
    return content[: int(draw.integers(len(content)))]


def cut_at_a_line(content: bytes, draw: np.random.Generator) -> bytes:
    """Keep some whole lines."""
    lines = content.splitlines(keepends=True)
    return b"".join(lines[: int(draw.integers(len(lines)))])


WAYS: dict[str, Callable[[bytes, np.random.Generator], bytes]] = {
    "flip": flip,
    "cut": cut,
    "cut at a line": cut_at_a_line,
}


def case(number: int, scratch: Path) -> Tried:
    """Damage a file of a run that is done or was stopped, then ask a command about it."""
    draw, study, tried = rng(number, "damage"), study_of(number // EACH), Tried()
    folder, is_done = scratch / "case", bool(draw.integers(2))
    base = _done(study, scratch) if is_done else _stopped(study, scratch)
    shutil.copytree(base, folder)
    run = run_folder(folder)
    assert run is not None
    told, *damaged = _damage(run, draw)
    name = str(draw.choice(list(ANSWERS))) if is_done or draw.integers(2) else "run"
    where = f"{study.name}, {'done' if is_done else 'stopped'}, {told}, then {name}"
    tried.counts["damaged folders"] += 1
    tried.kind("kinds of files", _kind(damaged[0]))
    answer, ended = _answer(name, folder)
    is_told = any(Path(each).name in ended.out + ended.err for each in damaged)
    if name == "verify":
        tried.check(problem_of(ended) if ended.code not in (0, 1) else "", where)
        is_found = ended.code == 1 and is_told
        tried.check("" if is_found or all(map(_may_change, damaged)) else "the damage is not found", where)
    elif not tried.check(problem_of(ended), where) or ended.code:
        tried.counts["refused"] += 1
    elif name == "run" and not is_done:
        tried.check(problem_of_result(folder, study, scratch), f"{where}, silently")
    elif answer != _whole_answer(name, study, is_done, scratch) and not is_told:
        tried.check("another answer, exit code 0 and not a word", where)
    return tried


def _damage(run: Path, draw: np.random.Generator) -> tuple[str, ...]:
    """Damage a file of a run, or swap two; return what was done, in words, and the files' names."""
    paths = sorted(path for path in run.rglob("*") if path.is_file() and path.name != LOCK and path.stat().st_size)
    kinds = sorted({_kind(str(path.relative_to(run))) for path in paths})
    kind = draw.choice(kinds)  # so that the one file of a kind is damaged as often as the many of another
    path = draw.choice([path for path in paths if _kind(str(path.relative_to(run))) == kind])
    name, way = str(path.relative_to(run)), str(draw.choice([*WAYS, "delete", "swap"]))
    if way == "delete":
        path.unlink()
    elif way == "swap":
        content = path.read_bytes()
        others = [other for other in paths if other.suffix == path.suffix and other.read_bytes() != content]
        other = draw.choice(others or [each for each in paths if each != path])
        path.write_bytes(other.read_bytes())
        other.write_bytes(content)
        return f"{name} and {other.relative_to(run)} swapped", name, str(other.relative_to(run))
    else:
        path.write_bytes(WAYS[way](path.read_bytes(), draw))
    return f"{way} {name}", name


def _kind(name: str) -> str:
    """Return a file's name without numbers."""
    return "".join("0" if letter.isdecimal() else letter for letter in name)


def _may_change(name: str) -> bool:
    """Tell whether a file is made from others, or is for people: nothing is read from it."""
    return name == LOG or bool(PAGES.fullmatch(name))


def _answer(name: str, folder: Path) -> tuple[Answer, Ended]:
    run = run_folder(folder)
    assert run is not None
    (folder / "answer").mkdir()
    (folder / "expected.toml").write_text((folder / "study.toml").read_text() + EXPECTED)
    ended = fedsim_command([str(run.relative_to(folder)) if each == RUN else each for each in ANSWERS[name]], folder)
    written = {path.name: path.read_bytes() for path in sorted((folder / "answer").rglob("*")) if path.is_file()}
    return Answer(ended.code, ended.out, written), ended


@cache
def _whole_answer(name: str, study: Study, is_done: bool, scratch: Path) -> Answer:
    """Return what a command gives about a folder that is whole."""
    folder = scratch / "asked"
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(_done(study, scratch) if is_done else _stopped(study, scratch), folder)
    return _answer(name, folder)[0]


def _done(study: Study, scratch: Path) -> Path:
    whole_run(study, scratch)
    return scratch / "whole" / study.name


@cache
def _stopped(study: Study, scratch: Path) -> Path:
    whole, folder = whole_run(study, scratch), scratch / "stopped" / study.name
    study.write(folder)
    fedsim_command(study.command, folder, Moment(round(CHANGE * whole.changes), kill_itself))
    return folder
