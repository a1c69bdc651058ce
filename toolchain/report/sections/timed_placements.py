"""Report section: the Q/DQ placements that were timed before training, and the one that was chosen."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from toolchain.core.run_report import RunReport
from toolchain.report import html_page, number_format
from toolchain.report.table import Table

TITLE = "Q/DQ placements timed before training"
ORDER = 130
HINT = (
    "Latency does not depend on the weights, so these are untrained candidates, each timed against the float model in the "
    "same process."
)
MAX_INT8_PLACEMENTS = 12  # shown of each architecture, the fastest


def tabulate(report: RunReport) -> Table:
    """Return a row per placement, for each architecture the fastest int8 ones and all float ones, the fastest first."""
    rows = []
    for architecture, search in (report.get("placement") or {}).items():
        tried = search.get("tried") or ()
        in_float = [placement for placement in tried if placement["precision"] != "int8"]
        in_int8 = [placement for placement in tried if placement["precision"] == "int8"][:MAX_INT8_PLACEMENTS]
        for placement in sorted((*in_float, *in_int8), key=lambda placement: -placement["speedup"]):
            rows.append(
                (
                    architecture, placement["label"], placement["precision"],
                    number_format.milliseconds(placement["latency_ms"]), number_format.multiple(placement["speedup"]),
                    "chosen" if _is_chosen(search, placement) else "",
                )
            )  # fmt: skip
    columns = ("Architecture", "Placement", "Precision", "Median latency", "Speed-up over f32", "")
    return Table(columns=columns, rows=tuple(rows), text_columns=(0, 1, 2, 5))


def _is_chosen(search: Mapping[str, Any], placement: Mapping[str, Any]) -> bool:
    """Return whether a placement was chosen: the fastest float one where float wins, else the int8 one of that label."""
    if placement["precision"] == "int8":
        return not search.get("float_wins") and placement["label"] == search.get("label")
    in_float = (other for other in search["tried"] if other["precision"] != "int8")
    return bool(search.get("float_wins")) and placement is max(in_float, key=lambda other: other["speedup"])


def render_html(report: RunReport) -> tuple[str, ...]:
    """Return the table and how the placements were timed."""
    return html_page.render_table(tabulate(report)), html_page.hint(f"{HINT} {describe_search(report)}.")


def describe_search(report: RunReport) -> str:
    """Return how many placements were timed for each architecture, for how long and for which target."""
    parts = []
    for architecture, search in (report.get("placement") or {}).items():
        if not search.get("tried"):
            parts.append(f"{architecture}: the default placement, not timed")
            continue
        where = f", timed for {search['measured_for']}" if search.get("measured_for") else ""
        duration = number_format.duration(search.get("seconds"))
        parts.append(f"{architecture}: {len(search['tried'])} timed in {duration}{where}")
    return "; ".join(parts)


if TYPE_CHECKING:
    from toolchain.report.section import Section
    from toolchain.report.sections import timed_placements as _this_module

    _: Section = _this_module  # mypy compares this module with the protocol
