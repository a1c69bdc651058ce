"""Latency and accuracy over time, target by target: tables for the terminal, and one HTML page with plots."""

import datetime
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from toolchain.core import files
from toolchain.report import html_page, number_format, svg
from toolchain.report.table import Table

HistoryEntry = Mapping[str, Any]
TITLE = "Latency and accuracy over time"
MAX_ROWS = 10  # of a target in its table, the latest
PLOTTED_QUANTITIES = (("p50_ms", 1.0, "p50, ms", "latency"), ("accuracy", 100.0, "accuracy, %", "accuracy"))


def group_by_target(entries: Sequence[HistoryEntry]) -> dict[str, list[HistoryEntry]]:
    """Return the entries of each target, targets in alphabetical order."""
    by_target: dict[str, list[HistoryEntry]] = {}
    for entry in entries:
        by_target.setdefault(str(entry["target"]), []).append(entry)
    return dict(sorted(by_target.items()))


def tabulate(target: str, entries: Sequence[HistoryEntry]) -> Table:
    """Return a row per entry, the latest MAX_ROWS of a target."""
    rows = tuple(
        (
            str(entry["at"])[:16].replace("T", " "), entry["kind"], entry["recipe"], number_format.with_interval(entry["p50_ms"]),
            number_format.with_interval(entry["accuracy"], 100), number_format.byte_size(entry["size_bytes"]), str(entry["version"] or ""),
            str(entry["machine"]), str(entry["sha256"])[:12],
        )
        for entry in entries[-MAX_ROWS:]
    )  # fmt: skip
    columns = (target, "From", "Recipe", "p50, ms", "Accuracy, %", "On disk", "Runtime", "Machine", "SHA-256")
    return Table(columns=columns, rows=rows, text_columns=(0, 1, 2, 6, 7, 8), optional_columns=(7, 8, 5, 6))


def write_page(entries: Sequence[HistoryEntry], unreadable_lines: Sequence[int], path: Path) -> None:
    """Write one page with plots and a table for each target.

    Args:
        entries: of all targets, the oldest first.
        unreadable_lines: numbers of the lines in the history that could not be read.
        path: of the page.
    """
    parts = [
        '<p class="lead">These milliseconds are of different days and machines. Whether a model became slower is decided by the gate.</p>',
        f"<h1>{TITLE}</h1>",
        html_page.notice([describe_skipped_lines(unreadable_lines)] if unreadable_lines else [], warning=True),
    ]
    for target, target_entries in group_by_target(entries).items():
        plots = "".join(
            html_page.plot(plot_quantity(target_entries, quantity, f"{target}-{number}"))
            for number, quantity in enumerate(PLOTTED_QUANTITIES)
        )
        parts.append(html_page.section(target, plots + html_page.render_table(tabulate(target, target_entries))))
    files.write_text(path, html_page.render_page(TITLE, parts))


def describe_skipped_lines(numbers: Sequence[int]) -> str:
    """Return a sentence on the lines of the history that were cut off or have another version."""
    lines = f"line{'s' if len(numbers) > 1 else ''} {', '.join(map(str, numbers))}"
    return f"{lines} of the history could not be read and {'were' if len(numbers) > 1 else 'was'} skipped"


def plot_quantity(entries: Sequence[HistoryEntry], quantity: tuple[str, float, str, str], name: str) -> str:
    """Plot one quantity over time, a line for each recipe and machine; "" where it was never measured."""
    key, factor, label, title = quantity
    lines: dict[str, list[HistoryEntry]] = {}
    machines = {entry["machine"] for entry in entries}
    for entry in entries:  # `bench` times models of any age in any order, so its entries are in the table only
        if entry[key] is not None and entry["kind"] != "bench":
            where = f" on {entry['machine']}" if len(machines) > 1 else ""
            how = f"{entry['recipe']}, {entry['precision']}, {entry['threads']} thread{'s' if entry['threads'] > 1 else ''}"
            lines.setdefault(f"{how}{where}", []).append(entry)
    if not lines:
        return ""
    with svg.figure(720, 240) as drawing:
        axes = drawing.add_axes((0.08, 0.2, 0.62, 0.74))
        for number, (name_of_line, line) in enumerate(sorted(lines.items())):
            x = [datetime.datetime.fromisoformat(entry["at"]) for entry in line]
            y = [factor * entry[key]["estimate"] for entry in line]
            ends = [
                [max(0.0, factor * (entry[key]["estimate"] - entry[key]["low"])) for entry in line],
                [max(0.0, factor * (entry[key]["high"] - entry[key]["estimate"])) for entry in line],
            ]
            colour = svg.LINE_COLOURS[number % len(svg.LINE_COLOURS)]
            axes.errorbar(x, y, yerr=ends, marker="o", markersize=4, linewidth=1, color=colour, label=name_of_line)  # type: ignore[arg-type]
        axes.set_ylabel(label)
        axes.tick_params(axis="x", labelrotation=20)
        drawing.legend(loc="upper left", bbox_to_anchor=(0.71, 0.97), frameon=False)
        return svg.render(drawing, name, f"{title} over time")
