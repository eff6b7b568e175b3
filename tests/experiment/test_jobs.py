"""How many runs at a time: they fill the machine, and no more."""

import multiprocessing
import os
import resource
from collections.abc import Callable
from itertools import product
from pathlib import Path

import pytest
import torch

from fedsim.config import Config
from fedsim.errors import ConfigError
from fedsim.experiment.sweep import jobs
from fedsim.experiment.sweep.jobs import choose_jobs, processes_that_fit
from fedsim.experiment.sweep.sweep import name_runs, run_all

CPU = {"device": "cpu", "engine__workers": 0}


@pytest.mark.parametrize(
    ("runs", "processors", "workers"), list(product((1, 2, 3, 7, 40), (1, 2, 3, 8, 64), (0, 1, 3)))
)
def test_the_jobs_fill_the_processors_and_no_more(
    tiny: Callable[..., Config], runs: int, processors: int, workers: int
) -> None:
    chosen = choose_jobs([tiny(device="cpu", engine__workers=workers)] * runs, None, processors)
    assert 1 <= chosen.count <= runs
    each = chosen.workers or processors
    # A single run may have been given more workers than there are processors.
    assert chosen.count == 1 or chosen.count * each <= processors
    # One more job, or one more worker each, would not fit.
    assert chosen.count == runs or (chosen.count + 1) * max(each, 1) > processors
    assert workers or chosen.count * (each + 1) > processors


@pytest.mark.parametrize(
    ("runs", "asked", "processors", "fitting", "count", "workers"),
    [
        (4, None, 2, None, 2, 1),
        (3, None, 8, None, 3, 2),
        (8, None, 8, 3, 3, 2),
        (8, None, 8, 0, 1, 0),
        (2, 5, 8, 1, 2, 4),
        (4, 4, 2, None, 4, 1),
        (4, 1, 8, None, 1, 0),
    ],
)
def test_jobs_and_workers(
    tiny: Callable[..., Config],
    runs: int,
    asked: int | None,
    processors: int,
    fitting: int | None,
    count: int,
    workers: int,
) -> None:
    chosen = choose_jobs([tiny(**CPU)] * runs, asked, processors, fitting)
    assert (chosen.count, chosen.workers) == (count, workers)


def test_what_was_chosen_is_one_line(tiny: Callable[..., Config]) -> None:
    four = [tiny(**CPU)] * 4
    ends = "--jobs changes it)"
    assert str(choose_jobs(four, None, 2)) == f"4 runs, 2 at a time with 1 worker each (2 processors; {ends}"
    assert str(choose_jobs(four, None, 8, 3)) == (
        f"4 runs, 3 at a time with 2 workers each (8 processors, memory for 3; {ends}"
    )
    assert str(choose_jobs(four, 3, 8)) == "4 runs, 3 at a time with 2 workers each (--jobs 3)"
    assert str(choose_jobs(four, None, 1)) == f"4 runs, one after the other (1 processor; {ends}"


def test_runs_share_neither_a_gpu_nor_ray(tiny: Callable[..., Config], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    gpu = [tiny(device="cpu"), tiny(device="auto")]
    assert choose_jobs(gpu, None, 8).count == 1
    assert choose_jobs(gpu, 2, 8).count == 2
    on_ray = [tiny(engine__name="ray")] * 2
    assert choose_jobs(on_ray, None, 8).count == 1
    assert choose_jobs(on_ray, 1, 8).count == 1
    with pytest.raises(ConfigError, match=r"--jobs 2 must be 1 with engine.name = 'ray'.*share one Ray; leave it out"):
        choose_jobs(on_ray, 2, 8)
    # A cluster's workers are shared out, unless the config says how many each run has.
    monkeypatch.setattr(jobs, "room_on_cluster", lambda engine: 13)
    on_cluster = [tiny(engine={"name": "ray", "address": "auto"})] * 5
    for asked, count, workers in ((None, 1, 0), (1, 1, 0), (3, 3, 4), (9, 5, 2)):
        chosen = choose_jobs(on_cluster, asked, 8)
        assert (chosen.count, chosen.workers) == (count, workers)
    fixed = [tiny(engine={"name": "ray", "address": "auto", "workers": 2})] * 5
    assert choose_jobs(fixed, 3, 8).workers == 2


@pytest.mark.slow
def test_a_worker_of_a_pool_runs_one_after_the_other_and_refuses_more(
    tiny: Callable[..., Config], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """Python lets a daemon start no processes: an AssertionError from inside of multiprocessing said so."""
    monkeypatch.setitem(multiprocessing.current_process()._config, "daemon", True)  # type: ignore[attr-defined]
    runs = name_runs([tiny(rounds=1, seed=seed, barriers={"every": 0}) for seed in (0, 1)], tmp_path)
    with pytest.raises(ConfigError, match=r"--jobs 2 must be 1 in a worker of a multiprocessing pool"):
        run_all(runs, 2)
    assert not list(tmp_path.iterdir())
    assert run_all(runs) == {}
    assert (
        "2 runs, one after the other (a worker of a multiprocessing pool starts no processes)" in capfd.readouterr().err
    )


def test_a_script_that_a_process_of_its_own_imports_again_is_told_to_guard_what_it_runs(
    tiny: Callable[..., Config], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(multiprocessing.current_process(), "_inheriting", True, raising=False)
    with pytest.raises(ConfigError, match=r"put what the script runs under: if __name__ == '__main__':"):
        run_all(name_runs([tiny()], tmp_path))
    assert not list(tmp_path.iterdir())


def test_memory_is_shared_by_processes_that_need_half_more_than_this_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jobs, "peak_bytes", lambda: 1000)
    monkeypatch.setattr(jobs, "free_bytes", lambda: 7499)
    assert processes_that_fit() == 4


def test_the_system_tells_how_much_memory_is_free() -> None:
    if not Path("/proc/meminfo").exists():
        pytest.skip("this system does not tell")
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    pages = {name: os.sysconf(name) * os.sysconf("SC_PAGE_SIZE") for name in ("SC_AVPHYS_PAGES", "SC_PHYS_PAGES")}
    count = processes_that_fit()
    assert count is not None
    # What is available is what is free, and what the system would give up for it; another process may take a tenth.
    assert 0.9 * pages["SC_AVPHYS_PAGES"] / (1.5 * peak) - 1 <= count <= pages["SC_PHYS_PAGES"] / (1.5 * peak)
