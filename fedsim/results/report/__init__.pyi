from fedsim.results.result import Result, find_runs, read_result, read_results

from .pages.page import write_comparison, write_partition, write_run

__all__ = ["Result", "find_runs", "read_result", "read_results", "write_comparison", "write_partition", "write_run"]
