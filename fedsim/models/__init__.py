"""A model as named parameters, as layers and as a graph; the mean of models; architectures by name."""
