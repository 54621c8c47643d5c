"""Tables, plots and a page, derived from records and from what lies beside them."""

from pqkv.report.experiments import Experiment, find_experiments
from pqkv.report.frame import to_frame, write_csv
from pqkv.report.markdown import write_markdown
from pqkv.report.page import write_page
from pqkv.report.plots import write_plots
from pqkv.report.summary import write_report

__all__ = [
    "Experiment", "find_experiments", "to_frame", "write_csv", "write_markdown", "write_page", "write_plots",
    "write_report",
]  # fmt: skip
