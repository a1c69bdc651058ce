"""Report section: how much accuracy each pruning group and each residual block costs when it alone is cut.

Markdown and the terminal have the most and the least sensitive ones; HTML has the curves, and all of them as a table.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from toolchain.core.run_report import RunReport
from toolchain.report import html_page, number_format, svg
from toolchain.report.svg import FONT_SIZE, GLYPH_WIDTH, INK, MAIN, MUTED, WARM
from toolchain.report.table import Table

if TYPE_CHECKING:
    from matplotlib.axes import Axes

TITLE = "Sensitivity to pruning"
ORDER = 80
TERMINAL_ORDER = 1
SHORT_ROWS = 3  # curves at either end of the short table
TABULATED_SHARES = (0.25, 0.5, 0.75)
MAX_SHARE_DISTANCE = 0.125  # within which a measured share may stand in a tabulated share's column
EQUAL_SHARE_DISTANCE = 0.02  # within which it is not written beside the accuracy
REASON_TEXT = {  # why nothing was measured
    "protected": "protected",
    "too narrow": "too narrow",
    "no time": "no time",
    "does not run": "cannot run",
}
PANEL_GRID = 6, 4  # rows and columns of curves in one figure
MAX_PANELS = PANEL_GRID[0] * PANEL_GRID[1]
MAX_BLOCKS = 30  # in one figure
SHARE_AXIS_LABEL = "share of channels removed, the least important first"
BLOCKS_CAPTION = "Each residual block removed alone, without training afterwards. Dashed: the whole network. Orange: the plan removes it."


@dataclass(frozen=True)
class PlottedCurve:
    """One pruning group or block as the report has it; the first of each list is the dense model."""

    name: str
    channel_count: int  # 0 of a block
    layer_count: int  # layers that put out these channels together
    shares: tuple[float, ...]
    accuracies: tuple[float, ...]
    low: tuple[float, ...]
    high: tuple[float, ...]
    planned_share: float

    @property
    def accuracy_at_plan(self) -> float | None:
        """Accuracy at the share that the plan cuts; None where it cuts nothing, or all because the block around it goes."""
        return (
            dict(zip(self.shares, self.accuracies, strict=True)).get(self.planned_share) if self.planned_share else None
        )


def read_curves(report: RunReport, kind: Literal["channels", "block"]) -> list[PlottedCurve]:
    """Return what was measured, the most sensitive first; points without all of their figures are left out."""
    curves = []
    for row in report.get("sensitivity") or ():
        points = _read_points(row)
        if row.get("kind") == kind and len(points) > 1:
            shares, accuracies, low, high = zip(*points, strict=True)
            size = row.get("channels") or 0, len(row.get("layers") or ())
            curves.append(PlottedCurve(row["name"], *size, shares, accuracies, low, high, row.get("cut") or 0.0))
    return curves


def _read_points(row: Mapping[str, Any]) -> list[tuple[float, ...]]:
    """Return share, accuracy and the bounds of its interval, of every point that has all of them."""
    points = zip(*(row.get(key) or () for key in ("shares", "accuracies", "low", "high")), strict=False)
    return [point for point in points if not any(map(number_format.is_missing, point))]


# --- tables -------------------------------------------------------------------------------------------------


def tabulate(report: RunReport) -> Table:
    """Return the most and the least sensitive of the groups and blocks that were measured."""
    rows = [row for row in report.get("sensitivity") or () if len(_read_points(row)) > 1]
    if len(rows) > 2 * SHORT_ROWS + 1:
        rows = [*rows[:SHORT_ROWS], {}, *rows[-SHORT_ROWS:]]
    return _tabulate(rows, short=True)


def tabulate_all(report: RunReport) -> Table:
    """Return every group and block, the most sensitive first, also those that were not measured and why."""
    return _tabulate(list(report.get("sensitivity") or ()), short=False)


def _tabulate(curves: Sequence[Mapping[str, Any]], *, short: bool) -> Table:
    """Return a row per curve; an empty one becomes a row of dots."""
    shares = (*TABULATED_SHARES, 1.0) if any(curve.get("kind") == "block" for curve in curves) else TABULATED_SHARES
    gap = ("…", *[""] * (len(shares) + 3))
    rows = tuple(_tabulate_curve(curve, shares, short=short) if curve else gap for curve in curves)
    heads = (f"At {number_format.whole_percent(share)} cut" if share < 1 else "Removed" for share in shares)
    columns = ("Group or block", "Channels", *heads, "Plan cuts", "Change alone")
    return Table(columns=columns, rows=rows, optional_columns=(1, 2, 4, len(columns) - 1))


def _tabulate_curve(curve: Mapping[str, Any], shares: Sequence[float], *, short: bool) -> tuple[str, ...]:
    points, cut = _read_points(curve)[1:], curve.get("cut")
    drops = dict(zip(curve.get("shares") or (), curve.get("drops") or (), strict=False))
    accuracies = [_format_nearest(points, share) for share in shares]
    if not points:
        accuracies[0] = REASON_TEXT.get(str(curve.get("why")), number_format.MISSING)
    drop = drops.get(cut) if cut else None
    change = number_format.points(-drop["estimate"]) if short and drop else number_format.accuracy_change(drop)
    channels = "block" if curve.get("kind") == "block" else str(curve.get("channels") or number_format.MISSING)
    name = number_format.shorten_name(curve["name"]) if short else curve["name"]
    return (name, channels, *accuracies, number_format.whole_percent(cut) if cut else "nothing", change)


def _format_nearest(points: Sequence[tuple[float, ...]], share: float) -> str:
    """Return the accuracy at the measured share nearest to `share`, and which share that is where it differs."""
    nearest, accuracy = min(((p[0], p[1]) for p in points), key=lambda p: abs(p[0] - share), default=(math.inf, 0.0))
    if abs(nearest - share) >= MAX_SHARE_DISTANCE:
        return number_format.MISSING
    text = number_format.percent(accuracy)
    return text if abs(nearest - share) < EQUAL_SHARE_DISTANCE else f"{text} at {number_format.whole_percent(nearest)}"


# --- HTML ---------------------------------------------------------------------------------------------------


def render_html(report: RunReport) -> tuple[str, ...]:
    """Return the curves of the groups, the blocks, and all of both as a table that opens."""
    table = html_page.render_table(tabulate_all(report))
    if not table:
        return ()
    return (
        html_page.plot(plot_groups(report), _make_caption(report))
        + html_page.plot(plot_blocks(report), BLOCKS_CAPTION)
        + f"<details><summary>All groups and blocks as a table</summary>{table}</details>",
    )


def _make_caption(report: RunReport) -> str:
    """Return what the plot of the groups shows, on how many images, how sure it is, and what is not in it."""
    rows = report.get("sensitivity") or ()
    curves = read_curves(report, "channels")
    if not curves:
        return ""
    images = next((row.get("images") for row in rows), None)
    reach = max(high - low for curve in curves for low, high in zip(curve.low, curve.high, strict=True)) / 2
    unmeasured = sum(row.get("why") == "no time" for row in rows)
    dots = ""
    if any(curve.planned_share for curve in curves):
        dots = " Orange dot: what the plan cuts, before training recovers the accuracy."
    rest = f" The other {len(curves) - MAX_PANELS} are in the table." if len(curves) > MAX_PANELS else ""
    late = f" Time ran out before {unmeasured} more could be measured." if unmeasured else ""
    return (
        f"Each pruning group cut alone, without training afterwards, on {images} validation images. A curve that falls early "
        "is a group that the network needs most; the most sensitive come first. Dashed: nothing cut. "
        f"Band: 95 % interval, at most ± {100 * reach:.1f} points.{dots}{rest}{late}"
    )


def plot_groups(report: RunReport) -> str:
    """Plot accuracy against the pruned share of each pruning group, the most sensitive first, all on one scale."""
    curves = read_curves(report, "channels")[:MAX_PANELS]
    if not curves:
        return ""
    columns = min(PANEL_GRID[1], len(curves))
    rows = -(-len(curves) // columns)
    panel_width, panel_height, left, bottom, top = 187.0, 116.0, 46.0, 36.0, 24.0  # of a panel with its title; margins
    width, height = left + columns * panel_width, top + rows * panel_height + bottom
    bounds = [bound for curve in curves for bound in (curve.low, curve.high)]
    floor, ceiling = min(map(min, bounds)), max(map(max, bounds))
    pad = 0.05 * (ceiling - floor) or 0.01
    with svg.figure(width, height) as drawing:
        for index, curve in enumerate(curves):
            row, column = divmod(index, columns)
            corner = (left + column * panel_width) / width, (height - top - (row + 1) * panel_height) / height
            axes = drawing.add_axes((*corner, (panel_width - 16) / width, (panel_height - 40) / height))
            _draw_panel(axes, curve)
            axes.set(xlim=(0, 1), ylim=(floor - pad, ceiling + pad))
            last = index + columns >= len(curves)
            axes.tick_params(left=False, bottom=False, labelleft=column == 0, labelbottom=last)
        title = "accuracy with this group alone cut, 95 % interval"
        for y, text in ((height - FONT_SIZE, title), (2, SHARE_AXIS_LABEL)):
            drawing.text(left / width, y / height, text, color=MUTED)
        return svg.render(drawing, "sensitivity", "Accuracy against the pruned share of each pruning group")


def _draw_panel(axes: "Axes", curve: PlottedCurve) -> None:
    """Draw one group's curve with its interval; the dot is what the plan cuts."""
    from matplotlib.ticker import MaxNLocator

    axes.fill_between(curve.shares, curve.low, curve.high, color=MAIN, alpha=0.15, linewidth=0)
    axes.axhline(curve.accuracies[0], color=MUTED, linewidth=1, linestyle=(0, (3, 3)))
    axes.plot(curve.shares, curve.accuracies, "-", color=MAIN, linewidth=1.8, marker="o", markersize=3)
    layers = f" of {curve.layer_count} layers" if curve.layer_count > 1 else ""
    subtitle, colour = f"{curve.channel_count} channels{layers}", MUTED
    accuracy = curve.accuracy_at_plan
    if accuracy is not None:
        axes.plot([curve.planned_share], [accuracy], "o", color=WARM, markersize=8, clip_on=False)
        share = number_format.whole_percent(curve.planned_share)
        subtitle, colour = f"plan cuts {share} of {curve.channel_count}", WARM
    axes.text(0, 1.27, number_format.shorten_name(curve.name, 24), transform=axes.transAxes, fontweight="bold")
    axes.text(0, 1.07, subtitle, transform=axes.transAxes, color=colour, fontsize=FONT_SIZE * 0.9)
    axes.set_xticks([0, 0.5, 1], ["0 %", "50 %", "100 %"])
    for label, side in zip(axes.get_xticklabels(), ("left", "center", "right"), strict=True):
        label.set(ha=side)  # or the end of one panel runs into the start of the next
    axes.yaxis.set_major_locator(MaxNLocator(4))
    axes.yaxis.set_major_formatter(lambda value, _: f"{100 * value:.4g} %" if value <= 1 else "")


def plot_blocks(report: RunReport) -> str:
    """Plot accuracy without each residual block, the most sensitive first, beside that of the whole network."""
    curves = read_curves(report, "block")[:MAX_BLOCKS]
    if not curves:
        return ""
    name_length = min(26, max(len(curve.name) for curve in curves))
    width, height = 800.0, 19.0 * len(curves) + 40
    left = (name_length * GLYPH_WIDTH + 14) / width
    with svg.figure(width, height) as drawing:
        axes = drawing.add_axes((left, 22 / height, 0.93 - left, 1 - 40 / height))
        axes.axvline(curves[0].accuracies[0], color=MUTED, linewidth=1, linestyle=(0, (3, 3)))
        for row, curve in enumerate(curves):
            colour = WARM if curve.planned_share else MAIN
            axes.plot([curve.low[-1], curve.high[-1]], [row, row], color=colour, linewidth=1.4, alpha=0.55)
            axes.plot(curve.accuracies[-1:], [row], "o", color=colour, markersize=6)
            text = number_format.percent(curve.accuracies[-1])
            axes.text(1.01, row, text, transform=axes.get_yaxis_transform(), va="center", color=colour)
        axes.set_yticks(range(len(curves)), [number_format.shorten_name(curve.name) for curve in curves], color=INK)
        axes.set_ylim(len(curves) - 0.4, -0.6)
        axes.tick_params(left=False, bottom=False)
        axes.xaxis.set_major_formatter(lambda value, _: f"{100 * value:.4g} %" if value <= 1 else "")
        axes.set_title("accuracy without the block", loc="left", fontsize=FONT_SIZE, color=MUTED)
        return svg.render(drawing, "blocks", "Accuracy without each residual block")


if TYPE_CHECKING:
    from toolchain.report.section import TerminalSection
    from toolchain.report.sections import sensitivity_curves as _this_module

    _: TerminalSection = _this_module  # mypy compares this module with the protocol
