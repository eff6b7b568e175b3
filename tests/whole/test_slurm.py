"""The batch script for SLURM, run by commands that stand for SLURM's, Ray's and fedsim's."""

import os
import signal
import subprocess
import time
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType

import pytest

SCRIPT = Path(__file__).parents[2] / "docs" / "slurm.sbatch"
COMMANDS = {
    "srun": 'echo "srun $SRUN_CPUS_PER_TASK $*" >> log; exec sleep 5',
    "scontrol": 'echo "scontrol $*" >> log',
    "python": "exit 0",
    # It stops when it is told to, as fedsim does, or has nothing left to do when it is started again. On a busy
    # machine, what srun starts may come later.
    "fedsim": 'echo "fedsim $*" >> log; '
    "for _ in {1..500}; do test $(grep -c ^srun log) -ge $((2 * $(grep -c ^fedsim log))) && break; sleep 0.02; done; "
    "test -e resumed && exit $(cat resumed); touch running; "
    "trap 'kill $!; exit 143' TERM; sleep 60 & wait",
}


def start(folder: Path, others: Mapping[str, str] = MappingProxyType({})) -> "subprocess.Popen[bytes]":
    """Start the script, with some of the commands replaced."""
    for name, text in (COMMANDS | others).items():
        path = folder / "bin" / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(f"#!/bin/bash\n{text}\n")
        path.chmod(0o755)
    slurm = {
        "SLURM_JOB_NUM_NODES": "3",
        "SLURM_JOB_ID": "41",
        "SLURM_CPUS_PER_TASK": "8",
        "SLURMD_NODENAME": "node-1",
    }
    return subprocess.Popen(
        ["bash", SCRIPT, "my study.toml", "--jobs", "4"],
        cwd=folder,
        env=os.environ | slurm | {"PATH": f"{folder / 'bin'}:{os.environ['PATH']}"},
        stderr=subprocess.PIPE,
    )


@pytest.mark.parametrize("code", [0, 2])
def test_the_batch_script_stops_before_the_limit_and_runs_again_until_all_is_done(code: int, tmp_path: Path) -> None:
    script = start(tmp_path)
    until = time.monotonic() + 60
    while not (tmp_path / "running").exists() and time.monotonic() < until:
        time.sleep(0.02)
    script.send_signal(signal.SIGTERM)
    _, said = script.communicate()
    assert script.returncode == 143, said
    (tmp_path / "resumed").write_text(str(code))
    assert start(tmp_path).wait() == code
    lines = (tmp_path / "log").read_text().splitlines()
    assert [line for line in lines if "scontrol" in line] == ["scontrol requeue 41"]
    runs = [line for line in lines if line.startswith("fedsim")]
    address = "node-1:20041"
    assert runs == [f'fedsim run my study.toml --engine ray --set engine.address="{address}" --jobs 4'] * 2
    assert sum("ray start --head --port=20041 --num-cpus=8" in line for line in lines) == 2
    workers = f"--nodes=2 --ntasks=2 --exclude=node-1 ray start --address={address}"
    assert sum(workers in line for line in lines) == 2
    assert {line.split()[1] for line in lines if line.startswith("srun")} == {"8"}


def test_the_batch_script_says_what_it_waited_for(tmp_path: Path) -> None:
    slow = {"python": "echo a traceback >&2; echo no token >&2; exit 1", "sleep": "", "srun": "", "fedsim": ""}
    script = start(tmp_path, slow)
    _, said = script.communicate()
    assert said.decode().splitlines() == [
        "1 nodes are not in the cluster at node-1:20041: no token",
        "3 nodes are not in the cluster at node-1:20041: no token",
    ]
