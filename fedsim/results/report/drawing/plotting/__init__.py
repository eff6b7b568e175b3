"""What figures use of matplotlib, imported when the first one is drawn: a page without figures as files needs none."""

from fedsim import lazy

__getattr__, __all__ = lazy.attach(__name__, __file__)
