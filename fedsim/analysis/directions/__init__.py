"""Directions in the space of parameters: random ones, and those that training took."""
