"""Report section: every repeat of the fine-tuning with another seed, and the one that the pipeline goes on with."""

from typing import TYPE_CHECKING

from toolchain.core.run_report import RunReport
from toolchain.report import html_page, number_format
from toolchain.report.table import Table

TITLE = "Fine-tuning with several seeds"
ORDER = 100


def tabulate(report: RunReport) -> Table:
    """Return a row per seed; none where there was only one."""
    rows = tuple(
        (
            str(seed_run["seed"]),
            number_format.percent(seed_run["validation"]),
            number_format.percent(seed_run["validation_balanced"]),
            str(seed_run["epoch"]),
            "used" if seed_run["chosen"] else "",
        )
        for seed_run in (report.get("adapt") or {}).get("seeds") or ()
    )
    columns = ("Seed", "Validation accuracy", "Balanced", "Best epoch", "")
    return Table(columns=columns, rows=rows if len(rows) > 1 else (), text_columns=(0, 4))


def render_html(report: RunReport) -> tuple[str, ...]:
    """Return the table."""
    return (html_page.render_table(tabulate(report)),)


if TYPE_CHECKING:
    from toolchain.report.section import Section
    from toolchain.report.sections import seed_runs as _this_module

    _: Section = _this_module  # mypy compares this module with the protocol
