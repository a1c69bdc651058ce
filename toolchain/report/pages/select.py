"""What `select` found, as tables, JSON, Markdown and one HTML page with a scatter plot of score against latency."""

from collections.abc import Mapping
from html import escape
from itertools import pairwise
from pathlib import Path
from typing import Any

from toolchain.core import files
from toolchain.report import charts, number_format, svg
from toolchain.report import html_page as page
from toolchain.report import write as report
from toolchain.report.sections import reuse, selection
from toolchain.selection import ranking

JsonObject = Mapping[str, Any]
AXIS_MARGIN_FACTOR = 1.3  # times the fastest and the slowest that the plot reaches beyond them, for names


def write(found: JsonObject, folder: Path) -> None:
    """Writes <domain>.<target>.json, .md and .html."""
    stem = f"{found['domain']}.{found['target']}"
    files.write_json(folder / f"{stem}.json", found)
    files.write_text(folder / f"{stem}.md", render_markdown(found))
    files.write_text(folder / f"{stem}.html", render_html(found))


def render_markdown(found: JsonObject) -> str:
    """The same for a pull request or a page of a wiki."""
    parts = [
        f"# Candidates for {found['domain']} on {found['target']}",
        f"{report.escape(selection.summarize(found))}.",
    ]
    parts.append(report.format_table(selection.tabulate_ranking(found)))
    if found["advice"]:
        parts += [f"## {reuse.TITLE}", f"{report.escape(reuse.describe(found['advice']))}."]
        parts += [report.format_table(reuse.tabulate(found["advice"]))] if found["advice"]["depths"] else []
    for title, content in selection.list_further_tables(found):
        parts += [f"## {title}", report.format_table(content)] if content.rows else []
    if found["warnings"]:
        parts += ["## Warnings", "\n".join(f"- {report.escape(text)}" for text in found["warnings"])]
    return "\n\n".join(parts) + "\n"


def render_html(found: JsonObject) -> str:
    """The page."""
    title = f"Candidates for {found['domain']} on {found['target']}"
    said = "".join(f"<p>Warning: {escape(text)}</p>" for text in found["warnings"])
    timed = any(row["fastest"] for row in found["candidates"])
    parts = [
        f'<h1>{escape(title)}</h1><p class="lead">{escape(selection.summarize(found))}.</p>',
        f'<div class="said warned">{said}</div>' if said else "",
        f'<figure><div class="wide large">{plot_trade_off(found)}</div><figcaption>Up and left is better; a line joins the front. Thin '
        "lines are 95 % intervals of the latency.</figcaption></figure>" if timed else "",
        page.render_table(selection.tabulate_ranking(found)),
        *_advised(found),
        *(
            f"<section><h2>{name}</h2>{page.render_table(content)}</section>"
            for name, content in selection.list_further_tables(found)
            if content.rows
        ),
    ]  # fmt: skip
    return page.PAGE_TEMPLATE.format(title=escape(title), css=page.CSS, body="\n".join(part for part in parts if part))


def _advised(found: JsonObject) -> list[str]:
    """How much of the first candidate is worth keeping, where that was asked for."""
    advice = found["advice"]
    if not advice:
        return []
    said, plot = escape(reuse.describe(advice)), reuse.plot_depths(advice)
    if not plot:
        return [f"<section><h2>{reuse.TITLE}</h2><p>{said}.</p></section>"]
    drawn = f'<figure><div class="wide large">{plot}</div><figcaption>{said}.</figcaption></figure>'
    return [f"<section><h2>{reuse.TITLE}</h2>{drawn}{page.render_table(reuse.tabulate(advice))}</section>"]


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
            ylabel=selection.SCORE_TITLES.get(found["score"], found["score"]),
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
        box = charts.place_label((x, y), (svg.GLYPH_WIDTH * len(row["name"]) + 4, svg.FONT_SIZE + 4), taken, frame)
        taken.append(box)
        middle = ((box[0] + box[2]) / 2, (box[1] + box[3]) / 2)
        colour = svg.MAIN if row["front"] else svg.MUTED
        axes.annotate(row["name"], middle, xycoords="figure pixels", ha="center", va="center_baseline", color=colour)
