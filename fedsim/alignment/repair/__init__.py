"""What averaging does to the moments of features, and how they are set right after it."""
