"""Units of models put into the same places: permutation symmetries, matching, merging and repair.

Pure functions over models and tensors, without a federated run.
"""

from fedsim import lazy

__getattr__, __all__ = lazy.attach(__name__, __file__)
