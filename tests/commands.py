"""``fedsim`` commands as processes, forked from one that has imported what they need: a new Python takes seconds."""

import multiprocessing
import os
import signal
import sys
from multiprocessing.process import BaseProcess
from pathlib import Path

from fedsim.experiment.sweep.processes import start_server


def start(*arguments: str, err: Path = Path(os.devnull)) -> BaseProcess:
    """Start a command, whose standard error goes to a file.

    Its ``exitcode`` is negative if a signal of that number ended it.
    """
    start_server(["fedsim.experiment.sweep.sweep", "fedsim.cli.commands"])
    process = multiprocessing.get_context("forkserver").Process(target=_run, args=(arguments, str(err)))
    process.start()
    return process


def _run(arguments: tuple[str, ...], err: str) -> None:
    from fedsim.cli import main

    for number, path in ((1, os.devnull), (2, err)):
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT), number)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGINT])  # which the server blocks
    sys.argv = ["fedsim", *arguments]
    main()
