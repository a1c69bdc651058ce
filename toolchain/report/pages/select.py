"""Results of `toolchain select` as tables, JSON, Markdown and one HTML page with a plot of score against latency."""

from collections.abc import Mapping
from html import escape
from itertools import pairwise
from pathlib import Path
from typing import Any

from toolchain.core import files
from toolchain.core.types import JsonObject
from toolchain.report import html_page, markdown, number_format, svg
from toolchain.report.label_placement import place_label
from toolchain.report.sections import model_candidates, reuse_depths
from toolchain.report.table import Table
from toolchain.selection import ranking

AXIS_MARGIN_FACTOR = 1.3  # by which the latency axis extends beyond the fastest and the slowest, to fit names


def write(result: JsonObject, folder: Path) -> None:
    """Write <domain>.<target>.json, .md and .html."""
    stem = f"{result['domain']}.{result['target']}"
    files.write_json(folder / f"{stem}.json", result)
    files.write_text(folder / f"{stem}.md", render_markdown(result))
    files.write_text(folder / f"{stem}.html", render_html(result))


def render_markdown(result: JsonObject) -> str:
    """Return all tables in Markdown, for a merge request or a wiki."""
    parts = [
        f"# {_title(result)}",
        f"{markdown.escape(model_candidates.summarize(result))}.",
        markdown.format_table(model_candidates.tabulate_ranking(result)),
        reuse_depths.render_advice(result["advice"]) if result["advice"] else "",
        *(markdown.format_section(title, table) for title, table in list_further_tables(result)),
    ]
    if result["warnings"]:
        parts += ["## Warnings", "\n".join(f"- {markdown.escape(text)}" for text in result["warnings"])]
    return "\n\n".join(part for part in parts if part) + "\n"


def _title(result: JsonObject) -> str:
    return f"Candidates for {result['domain']} on {result['target']}"


CAPTION = "Up and left is better. The line is the Pareto front; thin lines are 95 % intervals of the latency."


def render_html(result: JsonObject) -> str:
    """Return the page."""
    timed = any(candidate["fastest"] for candidate in result["candidates"])
    summary = escape(model_candidates.summarize(result))
    parts = (
        f'<h1>{escape(_title(result))}</h1><p class="lead">{summary}.</p>',
        html_page.notice((f"Warning: {text}" for text in result["warnings"]), warning=True),
        html_page.plot(plot_trade_off(result), CAPTION) if timed else "",
        html_page.render_table(model_candidates.tabulate_ranking(result)),
        _render_advice(result["advice"]) if result["advice"] else "",
        *(html_page.section(title, html_page.render_table(table)) for title, table in list_further_tables(result)),
    )
    return html_page.render_page(_title(result), parts)


def _render_advice(advice: JsonObject) -> str:
    """Return how much of the first candidate to keep, with curves and a table where depths were assessed."""
    sentence = f"{reuse_depths.describe(advice)}."
    if not advice["depths"]:
        return html_page.section(reuse_depths.TITLE, f"<p>{escape(sentence)}</p>")
    plot = html_page.plot(reuse_depths.plot_depths(advice), sentence)
    return html_page.section(reuse_depths.TITLE, plot, html_page.render_table(reuse_depths.tabulate_depths(advice)))


def list_further_tables(result: JsonObject) -> tuple[tuple[str, Table], ...]:
    """Return the tables below the ranking, each with its title."""
    left_out = model_candidates.tabulate_left_out(result)
    return ("Origin and licence of the weights", tabulate_origins(result)), ("Left out", left_out)


def tabulate_origins(result: JsonObject) -> Table:
    """Return a row per candidate: the dataset it was trained on, its weights, their licence."""
    rows = tuple(
        (
            candidate["name"],
            candidate["trained_on"] or "not known",
            _describe_weights(candidate["weights"]),
            candidate["licence"] or "not known",
        )
        for candidate in result["candidates"]
        if not candidate["error"]
    )
    return Table(columns=("Candidate", "Trained on", "Weights", "Licence"), rows=rows, text_columns=(0, 1, 2, 3))


def _describe_weights(weights: Mapping[str, Any]) -> str:
    digest = f", sha256 {weights['sha256'][:12]}" if len(weights["sha256"]) == 64 else ""
    return f"{weights['source']}{digest}"


def plot_trade_off(result: JsonObject) -> str:
    """Plot score against latency, with the Pareto front."""
    candidates = [candidate for candidate in result["candidates"] if candidate["fastest"]]
    points = [(ranking.read_latency_ms(c) or 0.0, c["scores"][result["score"]]) for c in candidates]
    front = sorted(point for point, candidate in zip(points, candidates, strict=True) if candidate["front"])
    with svg.figure(720, 360) as drawing:
        axes = drawing.add_axes((0.09, 0.13, 0.88, 0.83))
        if front:
            axes.step(*zip(*front, strict=True), where="post", color=svg.MAIN, linewidth=1.2, alpha=0.6)
        for (x, y), candidate in zip(points, candidates, strict=True):
            colour = svg.MAIN if candidate["front"] else svg.MUTED
            latency = candidate["latency_ms"][candidate["fastest"]]
            axes.hlines(y, latency["low"], latency["high"], color=colour, linewidth=0.8, alpha=0.5)
            axes.plot([x], [y], "o", color=colour, markersize=7 if candidate["front"] else 5)
        svg.use_log_scale(axes, number_format.significant)
        axes.margins(y=0.12)
        latencies = [x for x, _ in points]
        axes.set(
            xlim=(min(latencies) / AXIS_MARGIN_FACTOR, max(latencies) * AXIS_MARGIN_FACTOR),
            xlabel="milliseconds (logarithmic)",
            ylabel=model_candidates.SCORE_TITLES.get(result["score"], result["score"]),
        )
        drawing.canvas.draw()
        _draw_names(axes, points, candidates, front)
        return svg.render(drawing, "front", "score against latency")


def _draw_names(
    axes: Any, points: list[tuple[float, float]], candidates: list[JsonObject], front: list[tuple[float, float]]
) -> None:
    """Write each name where it covers neither another one nor a dot or a line."""
    frame = (axes.bbox.x0, axes.bbox.y0, axes.bbox.x1, axes.bbox.y1)
    positions = [tuple(map(float, axes.transData.transform(point))) for point in points]
    occupied = [(x - 5, y - 5, x + 5, y + 5) for x, y in positions]
    for (_, y), candidate in zip(positions, candidates, strict=True):
        latency = candidate["latency_ms"][candidate["fastest"]]
        low, high = (float(axes.transData.transform((latency[bound], 0))[0]) for bound in ("low", "high"))
        occupied.append((low, y - 1, high, y + 1))
    corners = [tuple(map(float, axes.transData.transform(point))) for point in front]
    occupied += [(x, y - 1, right, y + 1) for (x, y), (right, _) in pairwise(corners)]
    for (x, y), candidate in sorted(zip(positions, candidates, strict=True), key=lambda pair: not pair[1]["front"]):
        box = place_label((x, y), (svg.GLYPH_WIDTH * len(candidate["name"]) + 4, svg.FONT_SIZE + 4), occupied, frame)
        occupied.append(box)
        middle = ((box[0] + box[2]) / 2, (box[1] + box[3]) / 2)
        colour = svg.MAIN if candidate["front"] else svg.MUTED
        axes.annotate(
            candidate["name"], middle, xycoords="figure pixels", ha="center", va="center_baseline", color=colour
        )
