"""Tables and plots, derived from records and from nothing else."""

from pqkv.report.frame import to_frame, write_csv
from pqkv.report.markdown import write_markdown
from pqkv.report.plots import write_plots
from pqkv.report.summary import write_report

__all__ = ["to_frame", "write_csv", "write_markdown", "write_plots", "write_report"]
