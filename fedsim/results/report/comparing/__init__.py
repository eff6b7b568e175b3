"""One table of many runs: grouped, paired, with intervals, costs and gains."""
