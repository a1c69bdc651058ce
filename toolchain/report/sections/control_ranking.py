"""Report section: the blocks that accuracy control ranked, and those that it returned to float."""

from typing import TYPE_CHECKING

from toolchain.core.run_report import RunReport
from toolchain.report import html_page, number_format
from toolchain.report.table import Table

TITLE = "Blocks ranked by accuracy control"
ORDER = 150
HINT = (
    "Each block was left in float alone: the validation accuracy, and the latency on the target. Blocks that gain most for "
    "the least latency come first."
)


def tabulate(report: RunReport) -> Table:
    """Return a row per block, in the order of the ranking; none where no accuracy budget called for it."""
    rows = tuple(
        (
            block["block"],
            number_format.percent(block["accuracy"]),
            f"{block['divergence']:.4f}",
            number_format.multiple(block.get("slowdown")),
            "float" if block["returned"] else "int8",
        )
        for block in (report.get("control") or {}).get("ranking") or ()
    )
    columns = ("Block", "Validation accuracy", "Divergence from dense", "Latency factor", "Precision")
    return Table(columns=columns, rows=rows, text_columns=(0, 4))


def render_html(report: RunReport) -> tuple[str, ...]:
    """Return the table and how it is ordered."""
    return html_page.render_table(tabulate(report)), html_page.hint(HINT)


if TYPE_CHECKING:
    from toolchain.report.section import Section
    from toolchain.report.sections import control_ranking as _this_module

    _: Section = _this_module  # mypy compares this module with the protocol
