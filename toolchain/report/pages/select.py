"""What `select` found, as tables, JSON, Markdown and one HTML page with a scatter plot of score against latency."""

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

AXIS_MARGIN_FACTOR = 1.3  # times the fastest and the slowest that the plot reaches beyond them, for names


def write(found: JsonObject, folder: Path) -> None:
    """Writes <domain>.<target>.json, .md and .html."""
    stem = f"{found['domain']}.{found['target']}"
    files.write_json(folder / f"{stem}.json", found)
    files.write_text(folder / f"{stem}.md", render_markdown(found))
    files.write_text(folder / f"{stem}.html", render_html(found))


def render_markdown(found: JsonObject) -> str:
    """Return all tables in Markdown, for a merge request or a wiki."""
    parts = [
        f"# {_title(found)}",
        f"{markdown.escape(model_candidates.summarize(found))}.",
        markdown.format_table(model_candidates.tabulate_ranking(found)),
        reuse_depths.render_advice(found["advice"]) if found["advice"] else "",
        *(markdown.format_section(title, table) for title, table in list_further_tables(found)),
    ]
    if found["warnings"]:
        parts += ["## Warnings", "\n".join(f"- {markdown.escape(text)}" for text in found["warnings"])]
    return "\n\n".join(part for part in parts if part) + "\n"


def _title(found: JsonObject) -> str:
    return f"Candidates for {found['domain']} on {found['target']}"


CAPTION = "Up and left is better; a line joins the front. Thin lines are 95 % intervals of the latency."


def render_html(found: JsonObject) -> str:
    """Return the page."""
    timed = any(candidate["fastest"] for candidate in found["candidates"])
    summary = escape(model_candidates.summarize(found))
    parts = (
        f'<h1>{escape(_title(found))}</h1><p class="lead">{summary}.</p>',
        html_page.notice((f"Warning: {text}" for text in found["warnings"]), warning=True),
        html_page.plot(plot_trade_off(found), CAPTION) if timed else "",
        html_page.render_table(model_candidates.tabulate_ranking(found)),
        _render_advice(found["advice"]) if found["advice"] else "",
        *(html_page.section(title, html_page.render_table(table)) for title, table in list_further_tables(found)),
    )
    return html_page.render_page(_title(found), parts)


def _render_advice(advice: JsonObject) -> str:
    """Return how much of the first candidate is worth keeping, as curves and a table where depths were assessed."""
    sentence = f"{reuse_depths.describe(advice)}."
    if not advice["depths"]:
        return html_page.section(reuse_depths.TITLE, f"<p>{escape(sentence)}</p>")
    plot = html_page.plot(reuse_depths.plot_depths(advice), sentence)
    return html_page.section(reuse_depths.TITLE, plot, html_page.render_table(reuse_depths.tabulate_depths(advice)))


def list_further_tables(found: JsonObject) -> tuple[tuple[str, Table], ...]:
    """Return the tables below the ranking, each with its title."""
    left_out = model_candidates.tabulate_left_out(found)
    return ("Where they come from", tabulate_origins(found)), ("Left out", left_out)


def tabulate_origins(found: JsonObject) -> Table:
    """Return a row per candidate: the dataset it was trained on, its weights, their licence."""
    rows = tuple(
        (
            candidate["name"],
            candidate["trained_on"] or "not known",
            _describe_weights(candidate["weights"]),
            candidate["licence"] or "not known",
        )
        for candidate in found["candidates"]
        if not candidate["error"]
    )
    return Table(columns=("Candidate", "Trained on", "Weights", "Licence"), rows=rows, text_columns=(0, 1, 2, 3))


def _describe_weights(weights: Mapping[str, Any]) -> str:
    digest = f", sha256 {weights['sha256'][:12]}" if len(weights["sha256"]) == 64 else ""
    return f"{weights['source']}{digest}"


def plot_trade_off(found: JsonObject) -> str:
    """Score against latency, with the front."""
    rows = [row for row in found["candidates"] if row["fastest"]]
    points = [(ranking.read_latency_ms(row) or 0.0, row["scores"][found["score"]]) for row in rows]
    front = sorted(point for point, row in zip(points, rows, strict=True) if row["front"])
    with svg.figure(720, 360) as drawing:
        axes = drawing.add_axes((0.09, 0.13, 0.88, 0.83))
        if front:
            axes.step(*zip(*front, strict=True), where="post", color=svg.MAIN, linewidth=1.2, alpha=0.6)
        for (x, y), row in zip(points, rows, strict=True):
            colour, taken = svg.MAIN if row["front"] else svg.MUTED, row["latency_ms"][row["fastest"]]
            axes.hlines(y, taken["low"], taken["high"], color=colour, linewidth=0.8, alpha=0.5)
            axes.plot([x], [y], "o", color=colour, markersize=7 if row["front"] else 5)
        svg.use_log_scale(axes, number_format.significant)
        axes.margins(y=0.12)
        latencies = [x for x, _ in points]
        axes.set(
            xlim=(min(latencies) / AXIS_MARGIN_FACTOR, max(latencies) * AXIS_MARGIN_FACTOR),
            xlabel="milliseconds (logarithmic)",
            ylabel=model_candidates.SCORE_TITLES.get(found["score"], found["score"]),
        )
        drawing.canvas.draw()
        _names(axes, points, rows, front)
        return svg.render(drawing, "front", "score against latency")


def _names(
    axes: Any, points: list[tuple[float, float]], rows: list[JsonObject], front: list[tuple[float, float]]
) -> None:
    """Each name where it covers neither another one nor a dot or a line."""
    frame = (axes.bbox.x0, axes.bbox.y0, axes.bbox.x1, axes.bbox.y1)
    spots = [tuple(map(float, axes.transData.transform(point))) for point in points]
    taken = [(x - 5, y - 5, x + 5, y + 5) for x, y in spots]
    for (_, y), row in zip(spots, rows, strict=True):
        one = row["latency_ms"][row["fastest"]]
        low, high = (float(axes.transData.transform((one[end], 0))[0]) for end in ("low", "high"))
        taken.append((low, y - 1, high, y + 1))
    corners = [tuple(map(float, axes.transData.transform(point))) for point in front]
    taken += [(x, y - 1, right, y + 1) for (x, y), (right, _) in pairwise(corners)]
    for (x, y), row in sorted(zip(spots, rows, strict=True), key=lambda pair: not pair[1]["front"]):
        box = place_label((x, y), (svg.GLYPH_WIDTH * len(row["name"]) + 4, svg.FONT_SIZE + 4), taken, frame)
        taken.append(box)
        middle = ((box[0] + box[2]) / 2, (box[1] + box[3]) / 2)
        colour = svg.MAIN if row["front"] else svg.MUTED
        axes.annotate(row["name"], middle, xycoords="figure pixels", ha="center", va="center_baseline", color=colour)
