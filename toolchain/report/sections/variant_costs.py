"""Report section: what each variant needs beside latency, and how closely it follows the trained model."""

from typing import TYPE_CHECKING

from toolchain.core.run_report import RunReport
from toolchain.report import html_page, number_format
from toolchain.report.table import Table, find_shipping_row

TITLE = "Cost of each variant"
ORDER = 30
HINT = (
    "MACs: multiply-accumulates of one image. Load, first run: in a fresh process. Of peak: share of the processor's peak "
    "throughput. Parity: share of images for which the exported model predicts the same class as the trained model. Steps: "
    "largest difference of a logit, in quantization steps."
)


def tabulate(report: RunReport) -> Table:
    """Return a row per variant: image size, MACs, parameters, memory, start-up times, parity with the trained model."""
    footprint = ("Peak memory", "Load", "First run", "Of peak", "Parity", "Steps")
    columns = ("Variant", "Method", "Image size", "MACs", "Parameters", *footprint)
    variants = report.get("variants") or ()
    rows = tuple(
        (
            v["name"],
            v.get("method") or number_format.MISSING,
            number_format.image_size(v.get("image_size")),
            number_format.count(v.get("macs")),
            number_format.count(v.get("parameters")),
            number_format.byte_size(v.get("peak_rss_bytes")),
            number_format.milliseconds(v.get("load_ms")),
            number_format.milliseconds(v.get("first_ms")),
            number_format.percent(v.get("peak_share")),
            number_format.percent((v.get("parity") or {}).get("top1_agreement")),
            number_format.steps((v.get("parity") or {}).get("max_steps")),
        )
        for v in variants
    )
    shipping_row = find_shipping_row(report, [v["name"] for v in variants])
    return Table(columns=columns, rows=rows, text_columns=(0, 1), shipping_row=shipping_row)


def render_html(report: RunReport) -> tuple[str, ...]:
    """Return the table and what its columns mean."""
    return html_page.render_table(tabulate(report)), html_page.hint(HINT)


if TYPE_CHECKING:
    from toolchain.report.section import Section
    from toolchain.report.sections import variant_costs as _this_module

    _: Section = _this_module  # mypy compares this module with the protocol
