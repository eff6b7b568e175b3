from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.colors import LinearSegmentedColormap, Normalize
from matplotlib.figure import Figure
from matplotlib.ticker import (
    FormatStrFormatter,
    FuncFormatter,
    LogLocator,
    MaxNLocator,
    NullFormatter,
)

from fedsim.results.report.drawing.plotting.formatters import Percents, PowersOfTen

__all__ = [
    "Axes",
    "Axis",
    "Figure",
    "FormatStrFormatter",
    "FuncFormatter",
    "LinearSegmentedColormap",
    "LogLocator",
    "MaxNLocator",
    "Normalize",
    "NullFormatter",
    "Percents",
    "PowersOfTen",
    "rc_context",
]
