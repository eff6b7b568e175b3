"""Measured figures of fedsim beside what the machine allows and what other code takes."""
