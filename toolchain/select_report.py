"""What `select` found, as tables, JSON, Markdown and one HTML page with a scatter plot of score against latency."""

from collections.abc import Mapping
from html import escape
from pathlib import Path
from typing import Any

from toolchain import canvas, charts, figures, page, records, report, selection
from toolchain.tables import Table

Report = Mapping[str, Any]
TITLES = {"probe": "Probe", "logme": "LogME", "hscore": "H-score", "leep": "LEEP"}  # others by their file's name
SHIPS = {"yes": "yes", "no": "no", "unknown": "not known"}


def write(found: Report, folder: Path) -> None:
    """Writes <domain>.<target>.json, .md and .html."""
    stem = f"{found['domain']}.{found['target']}"
    records.write_json(folder / f"{stem}.json", found)
    records.write_text(folder / f"{stem}.md", markdown(found))
    records.write_text(folder / f"{stem}.html", html(found))


def ranking(found: Report) -> Table:
    """Best first; a star marks the front."""
    names = score_names(found)
    rows = tuple(
        (
            str(row["rank"]), row["name"] + (" *" if row["front"] else ""),
            *(_score(name, row["scores"].get(name)) for name in names), _latency(row),
            figures.count(row["macs"]), figures.size(row["size_bytes"].get(row["fastest"] or "f32")),
            SHIPS[row["may_ship"]],
        )
        for row in found["candidates"]
        if not row["error"]
    )  # fmt: skip
    titles = (TITLES.get(name, name) for name in names)
    columns = ("", "Candidate", *titles, "Latency, ms", "MACs", "Size", "May ship")
    return Table(columns=columns, rows=rows, spare=(*range(3, 2 + len(names)), len(names) + 3, len(names) + 4))


def score_names(found: Report) -> list[str]:
    """The score that is ranked by first."""
    names = {name for row in found["candidates"] for name in row["scores"]}
    return sorted(names, key=lambda name: (name != found["score"], name))


def _score(name: str, value: float | None) -> str:
    if value is None:
        return figures.NONE
    return figures.percent(value) if name == "probe" else figures.significant(value)


def _latency(row: Report) -> str:
    if not row["fastest"]:
        return figures.NONE
    return f"{figures.bounded(row['latency_ms'][row['fastest']])} {row['fastest']}"


def origins(found: Report) -> Table:
    """Where the weights come from, and under what licence."""
    rows = tuple(
        (
            row["name"], row["trained_on"] or "not known", _source(row["weights"]), row["licence"] or "not known",
        )
        for row in found["candidates"]
        if not row["error"]
    )  # fmt: skip
    return Table(columns=("Candidate", "Trained on", "Weights", "Licence"), rows=rows, prose=(0, 1, 2, 3))


def _source(weights: Mapping[str, Any]) -> str:
    digest = f", sha256 {weights['sha256'][:12]}" if len(weights["sha256"]) == 64 else ""
    return f"{weights['source']}{digest}"


def left_out(found: Report) -> Table:
    """Candidates that could not be had, and why."""
    rows = tuple((row["name"], row["error"]) for row in found["candidates"] if row["error"])
    return Table(columns=("Left out", "Why"), rows=rows, prose=(0, 1))


def sections(found: Report) -> tuple[tuple[str, Table], ...]:
    """What stands below the ranking."""
    return ("Where they come from", origins(found)), ("Left out", left_out(found))


def summary(found: Report) -> str:
    """How much stands behind the figures."""
    row, why = selection.chosen(found, None)
    versions = ", ".join(f"{name} {version}" for name, version in found["versions"].items() if name in RUNTIMES)
    return (
        f"First: {row['name']} ({why}). Scores from {found['images']['train']:,} training and {found['images']['val']:,} "
        f"validation images of {found['domain']} at {figures.sides(found['image_size'])}; latency of untrained copies on "
        f"{found['target']} ({versions}), the faster of float and integers. * on the front: nothing else is better in both"
    )


RUNTIMES = ("onnxruntime", "openvino")


def markdown(found: Report) -> str:
    """The same for a pull request or a page of a wiki."""
    parts = [f"# Candidates for {found['domain']} on {found['target']}", f"{report.inline(summary(found))}."]
    parts.append(report.grid(ranking(found)))
    for title, content in sections(found):
        parts += [f"## {title}", report.grid(content)] if content.rows else []
    if found["warnings"]:
        parts += ["## Warnings", "\n".join(f"- {report.inline(text)}" for text in found["warnings"])]
    return "\n\n".join(parts) + "\n"


def html(found: Report) -> str:
    """The page."""
    title = f"Candidates for {found['domain']} on {found['target']}"
    said = "".join(f"<p>Warning: {escape(text)}</p>" for text in found["warnings"])
    timed = any(row["fastest"] for row in found["candidates"])
    parts = [
        f'<p class="lead">{escape(summary(found))}.</p><h1>{escape(title)}</h1>',
        f'<div class="said warned">{said}</div>' if said else "",
        f'<figure><div class="wide large">{plot(found)}</div><figcaption>Up and left is better; the line joins what no '
        "other candidate beats in both.</figcaption></figure>" if timed else "",
        page.table(ranking(found)),
        *(
            f"<section><h2>{name}</h2>{page.table(content)}</section>"
            for name, content in sections(found)
            if content.rows
        ),
    ]  # fmt: skip
    return page.PAGE.format(title=escape(title), css=page.CSS, body="\n".join(part for part in parts if part))


def plot(found: Report) -> str:
    """Score against latency, with the front."""
    rows = [row for row in found["candidates"] if row["fastest"]]
    points = [(selection.latency(row) or 0.0, row["scores"][found["score"]]) for row in rows]
    front = sorted(point for point, row in zip(points, rows, strict=True) if row["front"])
    with canvas.figure(720, 360) as drawing:
        axes = drawing.add_axes((0.09, 0.13, 0.88, 0.83))
        axes.step(*zip(*front, strict=True), where="post", color=canvas.MAIN, linewidth=1.2, alpha=0.6)
        for (x, y), row in zip(points, rows, strict=True):
            axes.plot(
                [x], [y], "o", color=canvas.MAIN if row["front"] else canvas.MUTED, markersize=7 if row["front"] else 5
            )
        axes.set_xscale("log")
        axes.margins(0.12)
        axes.set(xlabel="milliseconds (logarithmic)", ylabel=TITLES.get(found["score"], found["score"]))
        drawing.canvas.draw()
        _names(axes, points, rows)
        return canvas.svg(drawing, "front", "score against latency")


def _names(axes: Any, points: list[tuple[float, float]], rows: list[Report]) -> None:
    """Each name where it covers neither another one nor a dot."""
    frame = (axes.bbox.x0, axes.bbox.y0, axes.bbox.x1, axes.bbox.y1)
    spots = [tuple(map(float, axes.transData.transform(point))) for point in points]
    taken = [(x - 5, y - 5, x + 5, y + 5) for x, y in spots]
    for (x, y), row in sorted(zip(spots, rows, strict=True), key=lambda pair: not pair[1]["front"]):
        box = charts.place((x, y), (canvas.GLYPH * len(row["name"]) + 4, canvas.SIZE + 4), taken, frame)
        taken.append(box)
        middle = ((box[0] + box[2]) / 2, (box[1] + box[3]) / 2)
        colour = canvas.MAIN if row["front"] else canvas.MUTED
        axes.annotate(row["name"], middle, xycoords="figure pixels", ha="center", va="center_baseline", color=colour)
