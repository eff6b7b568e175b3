"""The command line: one command per task, over the functions that Python users call too."""

from fedsim.cli.signals import run_heeding_signals
from fedsim.lazy import Place

__all__ = ["main"]


def main() -> None:
    """Run the command line; its imports take a second, in which it may be told to end too."""
    run_heeding_signals(Place("fedsim.cli.commands", "main").load)
