"""Losses by example, their differences, and the confidence in their means."""
