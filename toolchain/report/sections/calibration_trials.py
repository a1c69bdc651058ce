"""Report section: the ways that were tried to calibrate activation ranges, and the one that was kept."""

from collections.abc import Mapping
from typing import TYPE_CHECKING

from toolchain.core.run_report import RunReport
from toolchain.report import html_page, number_format
from toolchain.report.table import Table

TITLE = "Calibration of activation ranges"
ORDER = 140
HINT = (
    "Divergence: Kullback-Leibler, in nats per image, from the float model's predictions on validation images. The closest "
    "is kept."
)
CORRECTION_TEXT: Mapping[str, str] = {
    "none": "none",
    "bias": "mean",
    "norm": "mean and standard deviation",
}


def tabulate(report: RunReport) -> Table:
    """Return a row per trial of each architecture, the one that was kept first."""
    rows = tuple(
        (
            architecture,
            trial["method"],
            CORRECTION_TEXT[trial["correction"]],
            f"{trial['divergence']:.4f}",
            number_format.percent(trial["accuracy"]),
            "kept" if trial is trials[0] else "",
        )
        for architecture, trials in (report.get("calibration") or {}).items()
        for trial in trials
    )
    columns = ("Architecture", "Range method", "Output correction", "Divergence from float", "Validation accuracy", "")
    return Table(columns=columns, rows=rows, text_columns=(0, 1, 2, 5))


def render_html(report: RunReport) -> tuple[str, ...]:
    """Return the table and what the divergence is."""
    return html_page.render_table(tabulate(report)), html_page.hint(HINT)


if TYPE_CHECKING:
    from toolchain.report.section import Section
    from toolchain.report.sections import calibration_trials as _this_module

    _: Section = _this_module  # mypy compares this module with the protocol
