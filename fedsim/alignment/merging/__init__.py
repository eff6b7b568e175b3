"""The mean of several models once their units are in the same places: all at once, or in a tree."""
