"""What a file shows as a figure, and a page as a chart."""

from fedsim.results.report.drawing.heat_maps import HeatMaps
from fedsim.results.report.drawing.layer_curves import LayerCurves
from fedsim.results.report.drawing.small_multiples import SmallMultiples

Picture = HeatMaps | SmallMultiples | LayerCurves
