"""Tables, figures and pages about finished or running experiments, made from their records alone."""

from fedsim import lazy

__getattr__, __all__ = lazy.attach(__name__, __file__)
