"""Many runs of one experiment: their names, how many run in parallel, and how far they are."""
