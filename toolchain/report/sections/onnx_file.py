"""Report section: the ONNX file that the model came from, and what was changed in reading it."""

from typing import TYPE_CHECKING

from toolchain.core.run_report import RunReport
from toolchain.report import html_page
from toolchain.report.table import Table

TITLE = "The ONNX file"
ORDER = 35
HINT = (
    "The graph was read with these changes, and its outputs compared with the file's own on random images. Every variant is "
    "compared with it; nothing was trained or pruned."
)


def tabulate(report: RunReport) -> Table:
    """Return a row per fact and per change; none where the model is no ONNX file."""
    facts = report.get("onnx_file") or {}
    labels = {"file": "file", "sha256": "SHA-256", "producer": "written by", "opset": "operator set", "input": "input"}
    rows = [(label, str(facts[key]) or "not known") for key, label in labels.items() if key in facts]
    rows += [("outputs", str(facts["classes"]))] if facts else []
    rows += [("changed", change) for change in facts.get("changes") or ()]
    return Table(columns=("Fact", "Value"), rows=tuple(rows), text_columns=(0, 1))


def render_html(report: RunReport) -> tuple[str, ...]:
    """Return the table and what it was compared with."""
    return html_page.render_table(tabulate(report)), html_page.hint(HINT)


if TYPE_CHECKING:
    from toolchain.report.section import Section
    from toolchain.report.sections import onnx_file as _this_module

    _: Section = _this_module  # mypy compares this module with the protocol
