"""A section that shows a chart, and whose files have the same as a figure."""

from fedsim.results.report.charts.pictures import picture_chart
from fedsim.results.report.drawing.picture import Picture
from fedsim.results.report.pages import how_to_read
from fedsim.results.report.pages.section import Section


def pictured(name: str, title: str, text: str, picture: Picture) -> Section:
    """Return the section of a picture, with how to read it."""
    help_text = how_to_read.OF.get(name, how_to_read.OF.get(name.partition("-")[0], ""))
    return Section(name, title, text, picture.figure, picture_chart(picture), help_text)
