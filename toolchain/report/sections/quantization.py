"""The report's tables on integers: which placements were timed, how ranges were drawn, which layers went back to float."""

from collections.abc import Mapping
from typing import Any

from toolchain.core import run_report
from toolchain.core.run_report import RunReport
from toolchain.report import number_format
from toolchain.report.table import Table


def tabulate_coverage(report: RunReport) -> Table:
    """How much of each integer variant ran in integers, with every convolution and linear layer that did not."""
    every = ((v["name"], v.get("integer_coverage") or {}) for v in report.get("variants") or ())
    found = [(name, c) for name, c in every if c.get("planned") or c.get("integer")]
    rows = tuple(
        (
            name,
            *(str(c.get(k, number_format.MISSING)) for k in ("integer", "planned", "total")),
            ", ".join(c.get("float_ops") or ()) or "none",
        )
        for name, c in found
    )
    shipping = next((i for i, (name, _) in enumerate(found) if name == run_report.shipped_name(report)), None)
    columns = ("Variant", "In integers", "Planned", "In all", "Left in float")
    return Table(columns=columns, rows=rows, text_columns=(0, 4), shipping_row=shipping)


MAX_INT8_PLACEMENTS = 12  # of the placements that were timed, the fastest
CORRECTION_TEXT: Mapping[str, str] = {"none": "nothing", "bias": "means", "norm": "means and spreads"}


def tabulate_placements(report: RunReport) -> Table:
    """The fastest of the placements that were timed before training, for each architecture, and the float forms."""
    rows = []
    for name, found in (report.get("placement") or {}).items():
        tried = found.get("tried") or ()
        floats = [one for one in tried if one["precision"] != "int8"]
        integer = [one for one in tried if one["precision"] == "int8"][:MAX_INT8_PLACEMENTS]
        for one in sorted((*floats, *integer), key=lambda one: -one["speedup"]):
            rows.append(
                (
                    name, one["label"], one["precision"], number_format.milliseconds(one["latency_ms"]),
                    number_format.multiple(one["speedup"]), "chosen" if _chosen(found, one) else "",
                )
            )  # fmt: skip
    columns = ("Architecture", "Placement", "Precision", "Median", "Against f32", "")
    return Table(columns=columns, rows=tuple(rows), text_columns=(0, 1, 2, 5))


def _chosen(found: Mapping[str, Any], one: Mapping[str, Any]) -> bool:
    if one["precision"] != "int8":
        return bool(found.get("float_wins")) and one is max(
            (other for other in found["tried"] if other["precision"] != "int8"), key=lambda other: other["speedup"]
        )
    return not found.get("float_wins") and one["label"] == found.get("label")


def describe_search(report: RunReport) -> str:
    """How many placements were timed, for which target, and for how long."""
    parts = []
    for name, found in (report.get("placement") or {}).items():
        if not found.get("tried"):
            parts.append(f"{name}: the usual placement, not timed")
            continue
        where = f", timed for {found['measured_for']}" if found.get("measured_for") else ""
        parts.append(f"{name}: {len(found['tried'])} timed in {number_format.duration(found.get('seconds'))}{where}")
    return "; ".join(parts)


def tabulate_calibration(report: RunReport) -> Table:
    """Ways of drawing ranges from the calibration images, the one that was kept first."""
    rows = tuple(
        (
            name,
            one["method"],
            CORRECTION_TEXT[one["correction"]],
            f"{one['divergence']:.4f}",
            number_format.percent(one["accuracy"]),
            "kept" if one is tried[0] else "",
        )
        for name, tried in (report.get("calibration") or {}).items()
        for one in tried
    )
    columns = ("Architecture", "Ranges", "Corrected of layers", "Divergence from float", "Validation accuracy", "")
    return Table(columns=columns, rows=rows, text_columns=(0, 1, 2, 5))


def tabulate_accuracy_control(report: RunReport) -> Table:
    """Blocks by what leaving each in float brings for what it costs; only where an accuracy budget called for it."""
    rows = tuple(
        (
            one["block"],
            number_format.percent(one["accuracy"]),
            f"{one['divergence']:.4f}",
            number_format.multiple(one.get("slowdown")),
            "in float" if one["returned"] else "in integers",
        )
        for one in (report.get("control") or {}).get("ranking") or ()
    )
    columns = ("Block", "Validation accuracy, it alone in float", "Divergence from dense", "Times as slow", "Outcome")
    return Table(columns=columns, rows=rows, text_columns=(0, 4))
