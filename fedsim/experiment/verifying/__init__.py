"""``fedsim verify``: whether a run's folder is what the run wrote, and whether its rounds give the same bytes again."""
