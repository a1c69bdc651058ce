"""Report section: how long each step of the pipeline took."""

from html import escape
from typing import TYPE_CHECKING

from toolchain.core.run_report import RunReport
from toolchain.report import number_format
from toolchain.report.table import Table, sort_steps

TITLE = "Time of each step"
ORDER = 170


def tabulate(report: RunReport) -> Table:
    """Return a row per step that took any time, and their sum."""
    seconds = report.get("seconds") or {}
    rows = [(name, number_format.duration(seconds[name])) for name in sort_steps(seconds) if seconds[name] != 0]
    known = [value for value in seconds.values() if not number_format.is_missing(value)]
    total = number_format.duration(sum(known) if known else None)
    return Table(columns=("Step", "Time"), rows=(*rows, ("total", total)) if rows else ())


def render_html(report: RunReport) -> tuple[str, ...]:
    """Return the times, each with a bar for its share of the longest."""
    seconds = {
        name: 0 if number_format.is_missing(value) else value for name, value in (report.get("seconds") or {}).items()
    }
    longest, rows = max(seconds.values(), default=0) or 1, []
    for name, duration in tabulate(report).rows:
        bar = f'<span style="width:{100 * seconds.get(name, 0) / longest:.1f}%"></span>'
        rows.append(
            f'<tr><th scope="row" class="prose">{escape(name)}</th><td>{duration}</td><td class="bar">{bar}</td></tr>'
        )
    return (f'<div class="wide"><table><tbody>{"".join(rows)}</tbody></table></div>' if rows else "",)


if TYPE_CHECKING:
    from toolchain.report.section import Section
    from toolchain.report.sections import step_times as _this_module

    _: Section = _this_module  # mypy compares this module with the protocol
