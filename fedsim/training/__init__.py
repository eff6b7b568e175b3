"""Local training of one client, or of many at once: pure functions of models, data and random streams.

Imports torch and NumPy only, so that it also works without Flower and Ray.
"""

from fedsim import lazy

__getattr__, __all__ = lazy.attach(__name__, __file__)
