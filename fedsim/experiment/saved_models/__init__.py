"""Barriers and features between checkpoint files from anywhere, without a run."""
