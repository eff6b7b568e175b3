"""The command line: one command per task, over the functions that Python users call too."""

from fedsim.cli.commands import main

__all__ = ["main"]
