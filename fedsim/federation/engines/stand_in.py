"""A script that runs in place of an agent of Ray: it waits until its parent process has ended."""

import os
import time


def wait() -> None:
    """Wait until the parent process has ended."""
    parent = os.getppid()
    while os.getppid() == parent != 1:
        time.sleep(1)


if __name__ == "__main__":
    wait()
