"""Checks of runs against the expectations of their experiment."""
