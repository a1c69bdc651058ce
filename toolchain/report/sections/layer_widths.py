"""Report section: channels and multiply-accumulates of every layer before and after pruning."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from toolchain.core.run_report import RunReport
from toolchain.report import html_page, key_results, number_format, svg
from toolchain.report.svg import FONT_SIZE, GLYPH_WIDTH, MAIN, MUTED, RULE
from toolchain.report.table import Table

TITLE = "Layers before and after pruning"
ORDER = 60
LEGEND = "Output channels of each layer. Pale bar: before pruning. Bar inside it: after pruning, grey where nothing was removed."
MAX_ROWS = 30  # layers in one figure
MAX_NAME_LENGTH = 26  # characters


def tabulate(report: RunReport) -> Table:
    """Return a row per layer."""
    rows = tuple(
        (
            layer["name"],
            str(layer["before"]),
            str(layer["after"]),
            number_format.count(layer.get("macs_before")),
            number_format.count(layer.get("macs_after")),
        )
        for layer in report.get("layers") or ()
    )
    return Table(columns=("Layer", "Channels before", "After", "MACs before", "After"), rows=rows)


def render_html(report: RunReport) -> tuple[str, ...]:
    """Return bars in place of the table, and what pruning removed in one sentence."""
    plots = plot_widths(report)
    columns = f'<div class="plots">{"".join(plots)}</div>' if plots else ""
    return columns, html_page.hint(f"{LEGEND} {describe_pruning(report)}.")


def describe_pruning(report: RunReport) -> str:
    """Return one sentence on what pruning removed."""
    layers = report.get("layers") or ()
    if not layers:
        return "Not pruned"
    narrower = sum(layer["after"] < layer["before"] for layer in layers)
    before, after = (sum(layer.get(key) or 0 for layer in layers) for key in ("macs_before", "macs_after"))
    change = key_results.from_to(number_format.count(before), number_format.count(after))
    return f"{narrower} of {len(layers)} layers are narrower" + (f"; {change} multiply-accumulates" if before else "")


def plot_widths(report: RunReport) -> list[str]:
    """Plot the channels of every layer before and after pruning, in columns of at most MAX_ROWS layers with one scale."""
    layers = list(report.get("layers") or ())
    if not layers:
        return []
    columns = max(-(-len(layers) // MAX_ROWS), 2 if len(layers) > 12 else 1)
    rows = -(-len(layers) // columns)
    widest = max(max(layer["before"], layer["after"]) for layer in layers)
    name_length = min(MAX_NAME_LENGTH, max(len(layer["name"]) for layer in layers))
    parts = [layers[start : start + rows] for start in range(0, len(layers), rows)]
    return [_plot_column(part, rows, widest, name_length, f"widths-{i}") for i, part in enumerate(parts)]


def _plot_column(layers: Sequence[Mapping[str, Any]], rows: int, widest: int, name_length: int, svg_name: str) -> str:
    """Plot one column: a pale bar for the width before, a full one for the width after, both numbers at the end."""
    width, height = 400.0, 17.0 * rows + 8
    left = (name_length * GLYPH_WIDTH * 0.9 + 8) / width
    with svg.figure(width, height) as drawing:
        axes = drawing.add_axes((left, 0, 0.83 - left, 1))
        for row, layer in enumerate(layers):
            axes.barh(row, layer["before"], height=0.68, color=RULE)
            axes.barh(row, layer["after"], height=0.68, color=MAIN if layer["after"] < layer["before"] else MUTED)
            name, size = number_format.shorten_name(layer["name"], MAX_NAME_LENGTH), FONT_SIZE * 0.9
            axes.text(-0.02 * widest, row, name, ha="right", va="center", fontsize=size)
            end = max(layer["before"], layer["after"]) + 0.02 * widest
            axes.text(end, row, _format_widths(layer), va="center", fontsize=size, color=MUTED)
        axes.set(xlim=(0, widest), ylim=(rows - 0.3, -0.7))
        axes.axis("off")
        return svg.render(drawing, svg_name, "Channels of each layer before and after pruning")


def _format_widths(layer: Mapping[str, Any]) -> str:
    before, after = layer["before"], layer["after"]
    return str(before) if before == after else f"{before} → {after}"


if TYPE_CHECKING:
    from toolchain.report.section import Section
    from toolchain.report.sections import layer_widths as _this_module

    _: Section = _this_module  # mypy compares this module with the protocol
