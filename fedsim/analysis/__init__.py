"""What averaging does to models: pure functions over models and tensors, without a federated run."""

from fedsim.analysis.barriers import barriers, count_evaluations

__all__ = ["barriers", "count_evaluations"]
