"""The moments of features after averaging, and their correction."""
