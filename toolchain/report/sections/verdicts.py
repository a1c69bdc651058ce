"""Verdicts: carried out of a larger module; to be described."""

from toolchain.core import run_report
from toolchain.core.run_report import RunReport
from toolchain.report import number_format
from toolchain.report.table import Table


def tabulate_verdicts(report: RunReport) -> Table:
    """Every check with what was measured, the limit and why."""
    rows = tuple(
        (
            run_report.humanize(v["check"]),
            run_report.humanize(v["outcome"]),
            number_format.verdict_value(v["check"], v.get("measured")),
            number_format.verdict_value(v["check"], v.get("limit"), limit=True),
            v.get("why") or "",
        )
        for v in report.get("verdicts") or ()
    )
    return Table(columns=("Check", "Outcome", "Measured", "Limit", "Why"), rows=rows, text_columns=(0, 1, 4))
