"""Federated learning simulator with partial layer aggregation and layer-wise barriers.

``import fedsim`` is cheap: each of its names is imported when it is first used.
"""

import os
import signal
import sys

if os.path.basename(sys.argv[0]) in ("-m", "fedsim") and signal.getsignal(signal.SIGINT) is signal.default_int_handler:  # noqa: PTH119
    # The command line is about to start: until it does, Ctrl-C just ends it.
    signal.signal(signal.SIGINT, signal.SIG_DFL)

from fedsim import lazy, packages

# Flower and Ray read these switches when they are imported, so they are set before anything else.
# A value that the user has set stands.
os.environ.setdefault("FLWR_TELEMETRY_ENABLED", "0")
os.environ.setdefault("FLWR_DISABLE_UPDATE_CHECK", "1")
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")

__version__ = "0.15.0"

packages.claim()
__getattr__, __all__ = lazy.attach(__name__, __file__)
