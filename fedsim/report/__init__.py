"""Tables, figures and pages about finished or running experiments, made from their records alone."""

from fedsim.report.page import write_comparison, write_run
from fedsim.report.results import Result, find_runs, read_result

__all__ = ["Result", "find_runs", "read_result", "write_comparison", "write_run"]
