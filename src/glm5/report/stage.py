"""The report as a stage of a run."""

from glm5.pipeline import StageContext, Summary
from glm5.report.page import write_report as write_page


def write_report(context: StageContext) -> Summary:
    """Write the run's page and say where it is."""
    return {"page": str(write_page(context.run))}
