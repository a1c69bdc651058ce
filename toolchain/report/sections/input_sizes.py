"""Report section: the image sizes that a short training compared, each with the widths that meet the budget at it."""

from typing import TYPE_CHECKING

from toolchain.core import run_report
from toolchain.core.run_report import RunReport
from toolchain.report import html_page, number_format
from toolchain.report.table import Table

TITLE = "Image sizes"
ORDER = 70
HINT = (
    "Each image size with the widths and blocks that meet the budget at it. The validation accuracy after a short training "
    "decides. Latency is measured on the untrained architecture, as a share of the dense model's latency in the precision "
    "that it would ship in."
)


def tabulate(report: RunReport) -> Table:
    """Return a row per image size; the size of the variant that ships is marked."""
    rows = tuple(
        (
            number_format.image_size(trial["size"]),
            number_format.multiple(trial["latency"]),
            number_format.percent(trial["reached"]),
            str(trial["images"]),
        )
        for trial in report.get("image_sizes") or ()
    )
    chosen = number_format.image_size(run_report.reported_variant(report).get("image_size"))
    chosen_row = next((index for index, row in enumerate(rows) if row[0] == chosen), None)
    columns = ("Image size", "Of dense latency", "Validation accuracy after a short training", "Images")
    return Table(columns=columns, rows=rows, shipping_row=chosen_row)


def render_html(report: RunReport) -> tuple[str, ...]:
    """Return the table and how the sizes were compared."""
    return html_page.render_table(tabulate(report)), html_page.hint(HINT)


if TYPE_CHECKING:
    from toolchain.report.section import Section
    from toolchain.report.sections import input_sizes as _this_module

    _: Section = _this_module  # mypy compares this module with the protocol
