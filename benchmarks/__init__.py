"""Measurements of fedsim against the limits of the machine and against other code."""
