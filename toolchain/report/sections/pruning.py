"""Pruning: carried out of a larger module; to be described."""

from toolchain.core import run_report
from toolchain.core.run_report import RunReport
from toolchain.report import key_results, number_format
from toolchain.report.table import Table


def tabulate_image_sizes(report: RunReport) -> Table:
    """Sizes of the pictures that a short training was to choose among."""
    rows = tuple(
        (
            number_format.image_size(one["size"]),
            number_format.multiple(one["latency"]),
            number_format.percent(one["reached"]),
            str(one["images"]),
        )
        for one in report.get("image_sizes") or ()
    )
    taken = number_format.image_size(run_report.reported_variant(report).get("image_size"))
    marked = next((index for index, row in enumerate(rows) if row[0] == taken), None)
    columns = ("Pictures", "Of the dense latency", "Validation after a short training", "Images")
    return Table(columns=columns, rows=rows, shipping_row=marked)


def tabulate_layers(report: RunReport) -> Table:
    """Widths and multiply-accumulates of every layer before and after pruning."""
    rows = tuple(
        (
            n["name"],
            str(n["before"]),
            str(n["after"]),
            number_format.count(n.get("macs_before")),
            number_format.count(n.get("macs_after")),
        )
        for n in report.get("layers") or ()
    )
    return Table(columns=("Layer", "Channels before", "After", "MACs before", "After"), rows=rows)


def describe_pruning(report: RunReport) -> str:
    """One sentence on what pruning took."""
    found = report.get("layers") or ()
    fewer = sum(n["after"] < n["before"] for n in found)
    before, after = (sum(n.get(key) or 0 for n in found) for key in ("macs_before", "macs_after"))
    took = (
        f"; {key_results.from_to(number_format.count(before), number_format.count(after))} multiply-accumulates"
        if before
        else ""
    )
    return f"{fewer} of {len(found)} layers narrower{took}" if found else "Not pruned"
