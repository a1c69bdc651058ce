"""Variants: carried out of a larger module; to be described."""

from collections.abc import Mapping
from typing import Any

from toolchain.core import run_report
from toolchain.core.run_report import RunReport
from toolchain.report import number_format
from toolchain.report.table import Table


def tabulate_variants(report: RunReport) -> Table:
    """Accuracy, latency and size of all variants, with what each gains and loses against the dense float model."""
    columns = ("Variant", "Accuracy", "Change", "Balanced", "p50", "p90", "p99", "Speed-up", "Size")
    rows = tuple(
        (
            v["name"],
            number_format.accuracy(v),
            number_format.accuracy_change(v.get("drop")),
            number_format.accuracy(v, "balanced_"),
            number_format.median_latency(v.get("latency_ms")),
            *(number_format.milliseconds((v.get("latency_ms") or {}).get(key)) for key in ("p90", "p99")),
            number_format.speedup(_speedup(report, v["name"])),
            number_format.byte_size(v.get("size_bytes")),
        )
        for v in report.get("variants") or ()
    )
    return Table(columns=columns, rows=rows, optional_columns=(6, 3, 2, 5, 7), shipping_row=_marked(report))


def _speedup(report: RunReport, name: str) -> Mapping[str, Any] | None:
    """A variant's speed-up over the dense float model, where it was paired with it."""
    pairs = report.get("ratios") or ()
    found = (p for p in pairs if p.get("variant") == name and p.get("baseline") == run_report.BASELINE)
    own = report.get("speedup") if name == run_report.reported_variant(report).get("name") else None
    return next(found, own)


def tabulate_costs(report: RunReport) -> Table:
    """What the variants need besides time, and how far each follows the model it came from."""
    footprint = ("Peak memory", "Load", "First run", "Of peak", "Parity", "Steps")
    columns = ("Variant", "Method", "Pictures", "MACs", "Parameters", *footprint)
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
        for v in report.get("variants") or ()
    )
    return Table(columns=columns, rows=rows, text_columns=(0, 1), shipping_row=_marked(report))


def _marked(report: RunReport) -> int | None:
    names = [v["name"] for v in report.get("variants") or ()]
    name = run_report.shipped_name(report)
    return names.index(name) if name in names else None
