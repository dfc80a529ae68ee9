"""The run report: what a run's folder holds, as one page to look at."""

from glm5.report.page import write_report

__all__ = ["write_report"]
