import subprocess
import sys

import torch

from fedsim.seeds import derive, rng


def test_a_stream_is_a_function_of_its_path_alone() -> None:
    first = rng(3, "train", 1, 2).random(4).tolist()
    rng(3, "train", 1, 3).random(100)
    assert rng(3, "train", 1, 2).random(4).tolist() == first


def test_different_paths_give_different_streams() -> None:
    paths = [(0, "a", 1), (0, "a", "1"), (0, "a", 1, 1), (0, "a", 11), (1, "a", 1), (0, "b", 1), (0, "a/1")]
    assert len({derive(*path) for path in paths}) == len(paths)


def test_a_stream_is_the_same_in_another_process() -> None:
    script = "from fedsim.seeds import derive; print(derive(7, 'partition'))"
    other = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert int(other.stdout) == derive(7, "partition")


def test_no_global_state_is_touched() -> None:
    torch.manual_seed(5)
    before = torch.get_rng_state()
    rng(0, "x").random()
    assert torch.equal(torch.get_rng_state(), before)
