"""What each command does once its arguments are read: a file each, imported when its command is given."""

import gc
from collections.abc import Callable
from typing import Any

from fedsim.lazy import LazyTable

ACTIONS: LazyTable[Callable[..., Any]] = LazyTable(
    {
        "run": "fedsim.cli.actions.running:run",
        "dry run": "fedsim.cli.actions.running:show",
        "partition": "fedsim.cli.actions.partitioning:partition",
        "barriers": "fedsim.cli.actions.measuring:barriers",
        "path": "fedsim.cli.actions.walking:path",
        "compare": "fedsim.cli.actions.reporting:compare",
        "report": "fedsim.cli.actions.reporting:write_report",
        "figure": "fedsim.cli.actions.drawing:figure",
        "check": "fedsim.cli.actions.reporting:check",
        "table": "fedsim.cli.actions.tabling:table",
        "verify": "fedsim.cli.actions.verifying:verify",
        "status": "fedsim.cli.actions.watching:show_status",
        "watch": "fedsim.cli.actions.watching:watch",
        "export": "fedsim.cli.actions.exporting:export",
        "list": "fedsim.cli.actions.listing:list_all",
        "list one": "fedsim.cli.actions.listing:list_one",
        "list settings": "fedsim.cli.actions.listing:list_settings",
    }
)


def action(name: str) -> Callable[..., Any]:
    """Import what a command does."""
    action = ACTIONS[name]
    gc.freeze()  # Python need not search what was imported for unreachable objects: a fifth of a short run's time
    return action
