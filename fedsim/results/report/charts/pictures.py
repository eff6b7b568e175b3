"""The chart that shows what a figure of a file shows."""

from altair.vegalite.v6.api import ChartType

from fedsim.results.report.charts.heat_map import heat_map_chart
from fedsim.results.report.charts.over_layers import over_layers_chart
from fedsim.results.report.charts.panels import panels_chart
from fedsim.results.report.drawing.heat_maps import HeatMaps
from fedsim.results.report.drawing.layer_curves import LayerCurves
from fedsim.results.report.drawing.picture import Picture
from fedsim.results.report.drawing.small_multiples import SmallMultiples


def picture_chart(picture: Picture) -> ChartType | None:
    """Return the chart of the same values; None if there is none."""
    match picture:
        case HeatMaps():
            return heat_map_chart(picture)
        case SmallMultiples():
            return panels_chart(picture)
        case LayerCurves():
            return over_layers_chart(picture)
