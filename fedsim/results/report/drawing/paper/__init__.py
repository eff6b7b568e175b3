"""Figures for a paper: as wide as a column or a page, with text of 8 points and embedded fonts."""
