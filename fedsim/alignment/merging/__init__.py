"""The mean of several models after aligning their units: all at once, or in a tree."""
