"""The report's plots: latency against accuracy, layer widths, training curves; each as one inline `<svg>`."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from toolchain.core import run_report
from toolchain.core.run_report import RunReport
from toolchain.report import number_format, svg, table
from toolchain.report.sections import sensitivity as sensitive
from toolchain.report.svg import COOL, FONT_SIZE, GLYPH_WIDTH, INK, MAIN, MUTED, RULE, WARM

if TYPE_CHECKING:
    from matplotlib.axes import Axes


Box = tuple[float, float, float, float]  # left, bottom, right, top, in pixels of the SVG

PRECISION_COLOURS = {"f32": COOL, "bf16": INK, "int8": WARM}
MAX_ROWS = 30  # layers in one figure
PANEL_GRID = 6, 4  # rows and columns of curves in one figure
SHARE_AXIS_LABEL = "share of the channels that is removed, the least important first"


# --- latency against accuracy -------------------------------------------------------------------------------


def plot_trade_off(report: RunReport) -> str:
    """All variants that have both figures: median latency with a whisker to p90, accuracy with its interval."""
    points = [v for v in report.get("variants") or () if is_plottable(v)]
    if not points:
        return ""
    with svg.figure(800, 420) as drawing:
        axes = drawing.add_axes((0.085, 0.12, 0.9, 0.82))
        for found in points:
            _point(axes, found, ships=found["name"] == run_report.shipped_name(report))
        axes.set_xlim(0, 1.12 * max(_whisker(v) for v in points))
        axes.margins(y=0.12)
        axes.yaxis.set_major_formatter(lambda value, _: f"{100 * value:.4g} %")
        axes.set_xlabel("latency of one image, ms: median, whisker to p90")
        axes.set_title("accuracy, 95 % interval", loc="left", fontsize=FONT_SIZE, color=MUTED)
        _legend(axes, [str(v.get("precision")) for v in points])
        _label(axes, points, run_report.shipped_name(report))
        return svg.render(drawing, "trade-off", "Latency against accuracy of all variants")


def is_plottable(found: Mapping[str, Any]) -> bool:
    """Whether a variant has the two figures that the plot needs."""
    p50 = (found.get("latency_ms") or {}).get("p50")
    return not number_format.is_missing(found.get("accuracy")) and not number_format.is_missing(p50)


def _whisker(found: Mapping[str, Any]) -> float:
    """Where the latency whisker ends; at the median without a p90."""
    p50, p90 = found["latency_ms"]["p50"], found["latency_ms"].get("p90")
    return float(p50 if number_format.is_missing(p90) else max(p50, p90))


def _colour(found: Mapping[str, Any]) -> str:
    return PRECISION_COLOURS.get(str(found.get("precision")), INK)


def _bounds(found: Mapping[str, Any]) -> tuple[float, float]:
    """The accuracy's interval; of no height without one."""
    accuracy = found["accuracy"]
    low, high = (found.get(key) for key in ("accuracy_low", "accuracy_high"))
    return (accuracy if low is None else min(low, accuracy), accuracy if high is None else max(high, accuracy))


def _point(axes: "Axes", found: Mapping[str, Any], *, ships: bool) -> None:
    """One variant; the one that ships has a ring around a larger dot."""
    x, y, colour = found["latency_ms"]["p50"], found["accuracy"], _colour(found)
    low, high = _bounds(found)
    axes.plot([x, x], [low, high], color=colour, linewidth=1.4, alpha=0.55, solid_capstyle="round")
    axes.plot([x, _whisker(found)], [y, y], color=colour, linewidth=1.4, alpha=0.55, solid_capstyle="round")
    axes.plot([x], [y], "o", color=colour, markersize=8 if ships else 6)
    if ships:
        axes.plot([x], [y], "o", markersize=16, markerfacecolor="none", markeredgecolor=MAIN, markeredgewidth=2)


def _legend(axes: "Axes", precisions: Sequence[str]) -> None:
    """Which colour is which precision, as coloured words above the plot on the right."""
    right = 1.0
    for name in sorted(set(precisions), reverse=True):
        look = {"color": PRECISION_COLOURS.get(name, INK), "fontweight": "bold"}
        axes.text(right, 1.03, name, look, ha="right", transform=axes.transAxes)
        right -= (len(name) + 2) * GLYPH_WIDTH / axes.bbox.width


def _label(axes: "Axes", points: Sequence[Mapping[str, Any]], ships: str | None) -> None:
    """Writes each name where it covers neither another name nor a dot, a whisker or the frame."""
    taken: list[Box] = []
    for found in points:
        x, y = axes.transData.transform((found["latency_ms"]["p50"], found["accuracy"]))
        right = axes.transData.transform((_whisker(found), 0))[0]
        bottom, top = (axes.transData.transform((0, bound))[1] for bound in _bounds(found))
        dot = 11 if found["name"] == ships else 5
        taken += [(x - dot, y - dot, x + dot, y + dot), (x, y - 1, right, y + 1), (x - 1, bottom, x + 1, top)]
    frame = (axes.bbox.x0, axes.bbox.y0, axes.bbox.x1, axes.bbox.y1)
    for found in sorted(points, key=lambda v: v["name"] != ships):
        at = axes.transData.transform((found["latency_ms"]["p50"], found["accuracy"]))
        name = f"{found['name']} ships" if found["name"] == ships else str(found["name"])
        box = place_label((float(at[0]), float(at[1])), (GLYPH_WIDTH * len(name) + 4, FONT_SIZE + 4), taken, frame)
        taken.append(box)
        look: dict[str, Any] = (
            {"color": MAIN, "fontweight": "bold"} if found["name"] == ships else {"color": _colour(found)}
        )
        middle = ((box[0] + box[2]) / 2, (box[1] + box[3]) / 2)
        axes.annotate(name, middle, xycoords="figure pixels", ha="center", va="center_baseline", **look)


def place_label(at: tuple[float, float], size: tuple[float, float], taken: Sequence[Box], frame: Box) -> Box:
    """The box of `size` near `at` that covers least of `taken` and leaves the frame least; nearer is better."""
    (x, y), (width, height) = at, size
    choices: list[tuple[float, Box]] = []
    for reach in (9, 15, 24, 36, 50, 66):
        for side, rise in ((1, 0), (-1, 0), (1, 0.8), (1, -0.8), (-1, 0.8), (-1, -0.8), (0, 1), (0, -1)):
            middle = (x + side * (reach + width / 2), y + rise * (reach + height / 2))
            box = (middle[0] - width / 2, middle[1] - height / 2, middle[0] + width / 2, middle[1] + height / 2)
            covered = sum(_overlap(box, other) for other in taken)
            outside = width * height - _overlap(box, frame)
            choices.append((covered + 4 * outside + reach, box))
    return min(choices, key=lambda choice: choice[0])[1]


def _overlap(one: Box, other: Box) -> float:
    """Area that two boxes share."""
    wide, high = min(one[2], other[2]) - max(one[0], other[0]), min(one[3], other[3]) - max(one[1], other[1])
    return max(wide, 0.0) * max(high, 0.0)


# --- widths of the layers -----------------------------------------------------------------------------------


def plot_widths(report: RunReport) -> list[str]:
    """Channels of every layer before and after pruning, in columns of at most ROWS layers with one scale."""
    layers = list(report.get("layers") or ())
    if not layers:
        return []
    columns = max(-(-len(layers) // MAX_ROWS), 2 if len(layers) > 12 else 1)
    rows = -(-len(layers) // columns)
    widest = max(max(layer["before"], layer["after"]) for layer in layers)
    names = min(26, max(len(layer["name"]) for layer in layers))
    parts = [layers[start : start + rows] for start in range(0, len(layers), rows)]
    return [_bars(part, rows, widest, names, f"widths-{i}") for i, part in enumerate(parts)]


def _bars(layers: Sequence[Mapping[str, Any]], rows: int, widest: int, names: int, name: str) -> str:
    """One column: a pale bar for the width before, a full one for the width after, both figures at the end."""
    width, height = 400.0, 17.0 * rows + 8
    left = (names * GLYPH_WIDTH * 0.9 + 8) / width
    with svg.figure(width, height) as drawing:
        axes = drawing.add_axes((left, 0, 0.83 - left, 1))
        for row, layer in enumerate(layers):
            axes.barh(row, layer["before"], height=0.68, color=RULE)
            axes.barh(row, layer["after"], height=0.68, color=MAIN if layer["after"] < layer["before"] else MUTED)
            axes.text(
                -0.02 * widest,
                row,
                number_format.shorten_name(layer["name"]),
                ha="right",
                va="center",
                fontsize=FONT_SIZE * 0.9,
            )
            end = max(layer["before"], layer["after"]) + 0.02 * widest
            axes.text(end, row, _both_widths(layer), va="center", fontsize=FONT_SIZE * 0.9, color=MUTED)
        axes.set(xlim=(0, widest), ylim=(rows - 0.3, -0.7))
        axes.axis("off")
        return svg.render(drawing, name, "Channels of each layer before and after pruning")


def _both_widths(layer: Mapping[str, Any]) -> str:
    before, after = layer["before"], layer["after"]
    return str(before) if before == after else f"{before} → {after}"


# --- sensitivity --------------------------------------------------------------------------------------------


def plot_sensitivity(report: RunReport) -> str:
    """Accuracy against the pruned share of each group of channels, the most sensitive first, all on one scale."""
    curves = sensitive.read_curves(report, "channels")[: PANEL_GRID[0] * PANEL_GRID[1]]
    if not curves:
        return ""
    columns = min(PANEL_GRID[1], len(curves))
    rows = -(-len(curves) // columns)
    wide, high, left, foot, head = 187.0, 116.0, 46.0, 36.0, 24.0  # of a panel with its title; of the margins
    width, height = left + columns * wide, head + rows * high + foot
    bounds = [p for curve in curves for p in (curve.low, curve.high)]
    floor, ceiling = min(map(min, bounds)), max(map(max, bounds))
    pad = 0.05 * (ceiling - floor) or 0.01
    with svg.figure(width, height) as drawing:
        for index, curve in enumerate(curves):
            row, column = divmod(index, columns)
            bottom = height - head - (row + 1) * high
            axes = drawing.add_axes(
                ((left + column * wide) / width, bottom / height, (wide - 16) / width, (high - 40) / height)
            )
            _panel(axes, curve)
            axes.set(xlim=(0, 1), ylim=(floor - pad, ceiling + pad))
            axes.tick_params(
                left=False, bottom=False, labelleft=column == 0, labelbottom=index + columns >= len(curves)
            )
        for y, text in (
            (height - FONT_SIZE, "accuracy with this group alone cut, 95 % interval"),
            (2, SHARE_AXIS_LABEL),
        ):
            drawing.text(left / width, y / height, text, color=MUTED)
        return svg.render(drawing, "sensitivity", "Accuracy against the pruned share of each group of channels")


def _panel(axes: "Axes", curve: sensitive.PlottedCurve) -> None:
    """One group's curve with its interval; the dot is what the plan cuts."""
    from matplotlib.ticker import MaxNLocator

    axes.fill_between(curve.shares, curve.low, curve.high, color=MAIN, alpha=0.15, linewidth=0)
    axes.axhline(curve.accuracies[0], color=MUTED, linewidth=1, linestyle=(0, (3, 3)))
    axes.plot(curve.shares, curve.accuracies, "-", color=MAIN, linewidth=1.8, marker="o", markersize=3)
    said, colour = (
        f"{curve.channel_count} channels" + (f" of {curve.layer_count} layers" if curve.layer_count > 1 else ""),
        MUTED,
    )
    at = curve.accuracy_at_plan
    if at is not None:
        axes.plot([curve.planned_share], [at], "o", color=WARM, markersize=8, clip_on=False)
        said, colour = f"plan cuts {number_format.whole_percent(curve.planned_share)} of {curve.channel_count}", WARM
    axes.text(0, 1.27, number_format.shorten_name(curve.name, 24), transform=axes.transAxes, fontweight="bold")
    axes.text(0, 1.07, said, transform=axes.transAxes, color=colour, fontsize=FONT_SIZE * 0.9)
    axes.set_xticks([0, 0.5, 1], ["0 %", "50 %", "100 %"])
    for label, side in zip(axes.get_xticklabels(), ("left", "center", "right"), strict=True):
        label.set(ha=side)  # or the end of one panel runs into the start of the next
    axes.yaxis.set_major_locator(MaxNLocator(4))
    axes.yaxis.set_major_formatter(lambda value, _: f"{100 * value:.4g} %" if value <= 1 else "")


def plot_blocks(report: RunReport) -> str:
    """Accuracy without each residual block, the most sensitive first, beside that of the whole network."""
    curves = sensitive.read_curves(report, "block")[:MAX_ROWS]
    if not curves:
        return ""
    names = min(26, max(len(curve.name) for curve in curves))
    width, height = 800.0, 19.0 * len(curves) + 40
    left = (names * GLYPH_WIDTH + 14) / width
    with svg.figure(width, height) as drawing:
        axes = drawing.add_axes((left, 22 / height, 0.93 - left, 1 - 40 / height))
        axes.axvline(curves[0].accuracies[0], color=MUTED, linewidth=1, linestyle=(0, (3, 3)))
        for row, curve in enumerate(curves):
            colour = WARM if curve.planned_share else MAIN
            axes.plot([curve.low[-1], curve.high[-1]], [row, row], color=colour, linewidth=1.4, alpha=0.55)
            axes.plot(curve.accuracies[-1:], [row], "o", color=colour, markersize=6)
            at = (1.01, row)
            text = number_format.percent(curve.accuracies[-1])
            axes.text(*at, text, transform=axes.get_yaxis_transform(), va="center", color=colour)
        axes.set_yticks(range(len(curves)), [number_format.shorten_name(curve.name) for curve in curves], color=INK)
        axes.set_ylim(len(curves) - 0.4, -0.6)
        axes.tick_params(left=False, bottom=False)
        axes.xaxis.set_major_formatter(lambda value, _: f"{100 * value:.4g} %" if value <= 1 else "")
        axes.set_title("accuracy without the block", loc="left", fontsize=FONT_SIZE, color=MUTED)
        return svg.render(drawing, "blocks", "Accuracy without each residual block")


# --- training -----------------------------------------------------------------------------------------------


def plot_training(report: RunReport) -> str:
    """Validation accuracy over the epochs of each training stage, side by side on one scale."""
    stages = {name: _curve(epochs) for name, epochs in (report.get("training") or {}).items()}
    names = [name for name in table.sort_steps(stages) if stages[name]]
    if not names:
        return ""
    with svg.figure(800, 220) as drawing:
        for column, name in enumerate(names):
            share = 0.915 / len(names)
            axes = drawing.add_axes((0.075 + column * share, 0.18, share - 0.02, 0.68))
            _stage(axes, name, stages[name], first=column == 0)
            every = [accuracy for curve in stages.values() for _, accuracy in curve]
            pad = 0.08 * (max(every) - min(every)) or 0.01
            axes.set_ylim(min(every) - pad, max(every) + 2 * pad)
        return svg.render(drawing, "training", "Validation accuracy over the epochs of each stage")


def _curve(epochs: Sequence[Mapping[str, Any]]) -> list[tuple[int, float]]:
    return [(e["epoch"], e["accuracy"]) for e in epochs if not number_format.is_missing(e.get("accuracy"))]


def _stage(axes: "Axes", name: str, curve: Sequence[tuple[int, float]], *, first: bool) -> None:
    """One stage's curve with the best epoch marked: its weights are the ones that went on."""
    from matplotlib.ticker import MaxNLocator

    epochs, accuracies = zip(*curve, strict=True)
    axes.plot(epochs, accuracies, "-", color=MAIN, linewidth=1.8, marker="o", markersize=3)
    best = max(range(len(epochs)), key=accuracies.__getitem__)
    axes.plot(epochs[best], accuracies[best], "o", color=MAIN, markersize=7)
    side = "right" if best > len(epochs) / 2 else "left"
    at, offset = (epochs[best], accuracies[best]), (0, 8)
    axes.annotate(number_format.percent(accuracies[best]), at, offset, textcoords="offset points", ha=side, color=MAIN)
    axes.set_title(name, loc="left", fontsize=FONT_SIZE, color=INK)
    axes.set_xlabel("epoch")
    axes.xaxis.set_major_locator(MaxNLocator(5, integer=True, min_n_ticks=1))
    axes.margins(x=0.1)
    axes.tick_params(axis="y", left=first)
    axes.yaxis.set_major_formatter((lambda value, _: f"{100 * value:.4g} %") if first else (lambda *_: ""))
