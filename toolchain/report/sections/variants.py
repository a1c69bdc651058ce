"""Report section: accuracy, latency and size of all variants, as a table and as a plot of latency against accuracy."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from toolchain.core import run_report
from toolchain.core.run_report import RunReport
from toolchain.report import html_page, number_format, svg
from toolchain.report.label_placement import Box, place_label
from toolchain.report.svg import COOL, FONT_SIZE, GLYPH_WIDTH, INK, MAIN, MUTED, WARM
from toolchain.report.table import Table, find_shipping_row

if TYPE_CHECKING:
    from matplotlib.axes import Axes

TITLE = "Variants"
ORDER = 20
TERMINAL_ORDER = 2
PRECISION_COLOURS = {"f32": COOL, "bf16": INK, "int8": WARM}
DOT_RADIUS, RING_RADIUS = 5, 11  # in pixels; the ring is around the variant that ships


def tabulate(report: RunReport) -> Table:
    """Return a row per variant, with its change and its speed-up against the dense float model."""
    columns = ("Variant", "Accuracy", "Change", "Balanced", "p50", "p90", "p99", "Speed-up", "Size")
    variants = report.get("variants") or ()
    rows = tuple(
        (
            v["name"],
            number_format.accuracy(v),
            number_format.accuracy_change(v.get("drop")),
            number_format.accuracy(v, "balanced_"),
            number_format.median_latency(v.get("latency_ms")),
            *(number_format.milliseconds((v.get("latency_ms") or {}).get(key)) for key in ("p90", "p99")),
            number_format.speedup(_find_speedup(report, v["name"])),
            number_format.byte_size(v.get("size_bytes")),
        )
        for v in variants
    )
    shipping_row = find_shipping_row(report, [v["name"] for v in variants])
    return Table(columns=columns, rows=rows, optional_columns=(6, 3, 2, 5, 7), shipping_row=shipping_row)


def _find_speedup(report: RunReport, name: str) -> Mapping[str, Any] | None:
    """Return a variant's speed-up over the dense float model; None where the two were not timed in pairs."""
    ratios = report.get("ratios") or ()
    measured = (r for r in ratios if r.get("variant") == name and r.get("baseline") == run_report.BASELINE)
    reported = report.get("speedup") if name == run_report.reported_variant(report).get("name") else None
    return next(measured, reported)


def render_html(report: RunReport) -> tuple[str, ...]:
    """Return the table and the plot below it."""
    return html_page.render_table(tabulate(report)), html_page.plot(plot_trade_off(report), _make_caption(report))


def _make_caption(report: RunReport) -> str:
    """Return the plot's caption, which names the variants that could not be drawn."""
    left_out = [str(v["name"]) for v in report.get("variants") or () if not is_plottable(v)]
    missing = f" Not drawn, because accuracy or latency is missing: {', '.join(left_out)}." if left_out else ""
    ring = " The ring marks the variant that ships." if run_report.shipped_name(report) else ""
    return f"Upper left is better: faster and more accurate.{ring}{missing}"


# --- latency against accuracy -------------------------------------------------------------------------------


def plot_trade_off(report: RunReport) -> str:
    """Plot the variants that have both figures: median latency with a whisker to p90, accuracy with its interval."""
    variants = [v for v in report.get("variants") or () if is_plottable(v)]
    if not variants:
        return ""
    shipped = run_report.shipped_name(report)
    with svg.figure(800, 420) as drawing:
        axes = drawing.add_axes((0.085, 0.12, 0.9, 0.82))
        for variant in variants:
            _draw_variant(axes, variant, ships=variant["name"] == shipped)
        axes.set_xlim(0, 1.12 * max(_whisker_end(variant) for variant in variants))
        axes.margins(y=0.12)
        axes.yaxis.set_major_formatter(lambda value, _: f"{100 * value:.4g} %")
        axes.set_xlabel("latency of one image, ms: median, whisker to p90")
        axes.set_title("accuracy, 95 % interval", loc="left", fontsize=FONT_SIZE, color=MUTED)
        _draw_legend(axes, [str(variant.get("precision")) for variant in variants])
        _draw_names(axes, variants, shipped)
        return svg.render(drawing, "trade-off", "Latency against accuracy of all variants")


def is_plottable(variant: Mapping[str, Any]) -> bool:
    """Return whether a variant has both figures that the plot needs."""
    p50 = (variant.get("latency_ms") or {}).get("p50")
    return not number_format.is_missing(variant.get("accuracy")) and not number_format.is_missing(p50)


def _whisker_end(variant: Mapping[str, Any]) -> float:
    """Return the latency that the whisker reaches to, in ms: the p90, or the median where there is no p90."""
    p50, p90 = variant["latency_ms"]["p50"], variant["latency_ms"].get("p90")
    return float(p50 if number_format.is_missing(p90) else max(p50, p90))


def _colour(variant: Mapping[str, Any]) -> str:
    return PRECISION_COLOURS.get(str(variant.get("precision")), INK)


def _bounds(variant: Mapping[str, Any]) -> tuple[float, float]:
    """Return the accuracy's interval; of no height where there is none."""
    accuracy = variant["accuracy"]
    low, high = (variant.get(key) for key in ("accuracy_low", "accuracy_high"))
    return (accuracy if low is None else min(low, accuracy), accuracy if high is None else max(high, accuracy))


def _draw_variant(axes: "Axes", variant: Mapping[str, Any], *, ships: bool) -> None:
    """Draw one variant; the one that ships has a ring around a larger dot."""
    x, y, colour = variant["latency_ms"]["p50"], variant["accuracy"], _colour(variant)
    low, high = _bounds(variant)
    axes.plot([x, x], [low, high], color=colour, linewidth=1.4, alpha=0.55, solid_capstyle="round")
    axes.plot([x, _whisker_end(variant)], [y, y], color=colour, linewidth=1.4, alpha=0.55, solid_capstyle="round")
    axes.plot([x], [y], "o", color=colour, markersize=8 if ships else 6)
    if ships:
        axes.plot([x], [y], "o", markersize=16, markerfacecolor="none", markeredgecolor=MAIN, markeredgewidth=2)


def _draw_legend(axes: "Axes", precisions: Sequence[str]) -> None:
    """Write which colour is which precision, as coloured words above the plot on the right."""
    right = 1.0
    for name in sorted(set(precisions), reverse=True):
        style = {"color": PRECISION_COLOURS.get(name, INK), "fontweight": "bold"}
        axes.text(right, 1.03, name, style, ha="right", transform=axes.transAxes)
        right -= (len(name) + 2) * GLYPH_WIDTH / axes.bbox.width


def _draw_names(axes: "Axes", variants: Sequence[Mapping[str, Any]], shipped: str | None) -> None:
    """Write each name where it covers neither another name nor a dot, a whisker or the frame."""
    occupied: list[Box] = []
    for variant in variants:
        x, y = axes.transData.transform((variant["latency_ms"]["p50"], variant["accuracy"]))
        right = axes.transData.transform((_whisker_end(variant), 0))[0]
        bottom, top = (axes.transData.transform((0, bound))[1] for bound in _bounds(variant))
        dot = RING_RADIUS if variant["name"] == shipped else DOT_RADIUS
        occupied += [(x - dot, y - dot, x + dot, y + dot), (x, y - 1, right, y + 1), (x - 1, bottom, x + 1, top)]
    frame = (axes.bbox.x0, axes.bbox.y0, axes.bbox.x1, axes.bbox.y1)
    for variant in sorted(variants, key=lambda variant: variant["name"] != shipped):
        ships = variant["name"] == shipped
        x, y = axes.transData.transform((variant["latency_ms"]["p50"], variant["accuracy"]))
        name = f"{variant['name']} ships" if ships else str(variant["name"])
        box = place_label((float(x), float(y)), (GLYPH_WIDTH * len(name) + 4, FONT_SIZE + 4), occupied, frame)
        occupied.append(box)
        style: dict[str, Any] = {"color": MAIN, "fontweight": "bold"} if ships else {"color": _colour(variant)}
        middle = ((box[0] + box[2]) / 2, (box[1] + box[3]) / 2)
        axes.annotate(name, middle, xycoords="figure pixels", ha="center", va="center_baseline", **style)


if TYPE_CHECKING:
    from toolchain.report.section import TerminalSection
    from toolchain.report.sections import variants as _this_module

    _: TerminalSection = _this_module  # mypy compares this module with the protocol
