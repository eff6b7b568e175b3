"""Losses by example, their differences, and how sure a mean of them is."""
