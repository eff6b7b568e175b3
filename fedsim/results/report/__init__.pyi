from fedsim.results.reading import find_runs, read_result, read_results
from fedsim.results.result import Result

from .drawing.partition import write_partition
from .pages.comparison_page import write_comparison
from .pages.run_page import write_run

__all__ = ["Result", "find_runs", "read_result", "read_results", "write_comparison", "write_partition", "write_run"]
