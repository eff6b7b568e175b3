"""HTML pages about one run or several, each a single file."""
