"""Tables, figures and pages about finished or running experiments, made from their records alone."""

from fedsim.results.report.pages.page import write_comparison, write_partition, write_run
from fedsim.results.result import Result, find_runs, read_result, read_results

__all__ = ["Result", "find_runs", "read_result", "read_results", "write_comparison", "write_partition", "write_run"]
