"""Figures of runs, their barriers and their comparisons."""
