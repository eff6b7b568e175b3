"""Units of models put into the same places: permutation symmetries, matching, merging and repair.

Pure functions over models and tensors, without a federated run.
"""
