"""Report section: every check of the budget, with what was measured, the limit and the reason."""

from typing import TYPE_CHECKING

from toolchain.core import run_report
from toolchain.core.run_report import RunReport
from toolchain.report import html_page, number_format
from toolchain.report.table import Table

TITLE = "Checks"
ORDER = 10
TERMINAL_ORDER = 3
OUTCOME_SIGNS = {"pass": "✓", "fail": "✗", "cannot_tell": "?", "not_measured": number_format.MISSING}


def tabulate(report: RunReport) -> Table:
    """Return a row per check."""
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


def render_html(report: RunReport) -> tuple[str, ...]:
    """Return the table with the sign and the colour of each outcome."""
    table = html_page.render_table(tabulate(report))
    for outcome, sign in OUTCOME_SIGNS.items():
        word = run_report.humanize(outcome)
        marked = f'<span class="outcome {outcome}">{sign} {word}</span>'
        table = table.replace(f'<td class="prose">{word}</td>', f'<td class="prose">{marked}</td>')
    return (table,)


if TYPE_CHECKING:
    from toolchain.report.section import TerminalSection
    from toolchain.report.sections import verdicts as _this_module

    _: TerminalSection = _this_module  # mypy compares this module with the protocol
