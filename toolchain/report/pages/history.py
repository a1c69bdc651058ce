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
MAX_ROWS = 10  # entries of a target in a table, the latest
PLOTTED_QUANTITIES = (("p50_ms", 1.0, "p50, ms", "latency"), ("accuracy", 100.0, "accuracy, %", "accuracy"))


def group_by_target(entries: Sequence[HistoryEntry]) -> dict[str, list[HistoryEntry]]:
    """Entries by target."""
    found: dict[str, list[HistoryEntry]] = {}
    for entry in entries:
        found.setdefault(str(entry["target"]), []).append(entry)
    return dict(sorted(found.items()))


def tabulate(target: str, entries: Sequence[HistoryEntry]) -> Table:
    """The latest of a target."""
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


def write_page(entries: Sequence[HistoryEntry], odd: Sequence[int], path: Path) -> None:
    """Write one page with plots and a table for each target."""
    parts = [
        '<p class="lead">Milliseconds of different days and machines; whether something became slower, the gate says.</p>',
        f"<h1>{TITLE}</h1>",
        html_page.notice([describe_skipped_lines(odd)] if odd else [], warning=True),
    ]
    for target, own in group_by_target(entries).items():
        plots = "".join(
            html_page.plot(plot_quantity(own, quantity, f"{target}-{number}"))
            for number, quantity in enumerate(PLOTTED_QUANTITIES)
        )
        parts.append(html_page.section(target, plots + html_page.render_table(tabulate(target, own))))
    files.write_text(path, html_page.render_page(TITLE, parts))


def describe_skipped_lines(odd: Sequence[int]) -> str:
    """What is to be said of lines that were cut or are of another version."""
    return f"line {', '.join(map(str, odd))} of the history is not readable and was left out"


def plot_quantity(entries: Sequence[HistoryEntry], quantity: tuple[str, float, str, str], name: str) -> str:
    """One quantity over time, a line a recipe and machine; nothing where it was never measured."""
    key, factor, label, says = quantity
    lines: dict[str, list[HistoryEntry]] = {}
    machines = {entry["machine"] for entry in entries}
    for entry in entries:  # `bench` times models of any age, in any order: they stand in the table
        if entry[key] is not None and entry["kind"] != "bench":
            where = f" on {entry['machine']}" if len(machines) > 1 else ""
            how = f"{entry['recipe']}, {entry['precision']}, {entry['threads']} thread{'s' if entry['threads'] > 1 else ''}"
            lines.setdefault(f"{how}{where}", []).append(entry)
    if not lines:
        return ""
    with svg.figure(720, 240) as drawing:
        axes = drawing.add_axes((0.08, 0.2, 0.62, 0.74))
        for number, (recipe, own) in enumerate(sorted(lines.items())):
            x = [datetime.datetime.fromisoformat(entry["at"]) for entry in own]
            y = [factor * entry[key]["estimate"] for entry in own]
            ends = [
                [max(0.0, factor * (entry[key]["estimate"] - entry[key]["low"])) for entry in own],
                [max(0.0, factor * (entry[key]["high"] - entry[key]["estimate"])) for entry in own],
            ]
            colour = svg.LINE_COLOURS[number % len(svg.LINE_COLOURS)]
            axes.errorbar(x, y, yerr=ends, marker="o", markersize=4, linewidth=1, color=colour, label=recipe)  # type: ignore[arg-type]
        axes.set_ylabel(label)
        axes.tick_params(axis="x", labelrotation=20)
        drawing.legend(loc="upper left", bbox_to_anchor=(0.71, 0.97), frameon=False)
        return svg.render(drawing, name, f"{says} over time")
