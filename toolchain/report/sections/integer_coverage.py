"""Report section: how much of each int8 variant its runtime executes in int8."""

from typing import TYPE_CHECKING

from toolchain.core.run_report import RunReport
from toolchain.report import html_page, number_format
from toolchain.report.table import Table, find_shipping_row

TITLE = "Layers that run in int8"
ORDER = 120
HINT = (
    "Counted in the graph that the runtime executes. Every convolution and linear layer that stays in float is named."
)


def tabulate(report: RunReport) -> Table:
    """Return a row per int8 variant: layers in int8, planned and in all, with the names of those that run in float."""
    every = ((v["name"], v.get("integer_coverage") or {}) for v in report.get("variants") or ())
    quantized = [(name, coverage) for name, coverage in every if coverage.get("planned") or coverage.get("integer")]
    rows = tuple(
        (
            name,
            *(str(coverage.get(key, number_format.MISSING)) for key in ("integer", "planned", "total")),
            ", ".join(coverage.get("float_ops") or ()) or "none",
        )
        for name, coverage in quantized
    )
    shipping_row = find_shipping_row(report, [name for name, _ in quantized])
    columns = ("Variant", "In int8", "Planned", "Total", "Left in float")
    return Table(columns=columns, rows=rows, text_columns=(0, 4), shipping_row=shipping_row)


def render_html(report: RunReport) -> tuple[str, ...]:
    """Return the table and where its numbers come from."""
    return html_page.render_table(tabulate(report)), html_page.hint(HINT)


if TYPE_CHECKING:
    from toolchain.report.section import Section
    from toolchain.report.sections import integer_coverage as _this_module

    _: Section = _this_module  # mypy compares this module with the protocol
