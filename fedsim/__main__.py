"""``python -m fedsim`` is the command line."""

import sys
from contextlib import suppress
from pathlib import Path

# Python puts the working folder first, where a file may have the name of a library: custom parts are found at the end.
with suppress(FileNotFoundError):  # of a folder that was removed, as the command line reports
    if sys.path[:1] == [str(Path.cwd())]:
        sys.path.append(sys.path.pop(0))

from fedsim.cli import main

main()
