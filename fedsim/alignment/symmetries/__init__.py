"""Which units of a model can change places: its permutation symmetries, read from its graph."""
