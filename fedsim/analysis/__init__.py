"""What averaging does to models: pure functions over models and tensors, without a federated run."""

from fedsim import lazy

__getattr__, __all__ = lazy.attach(__name__, __file__)
