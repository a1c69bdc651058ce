"""What `bench` found, as tables, JSON, Markdown and one HTML page with a plot."""

from collections.abc import Mapping
from html import escape
from pathlib import Path
from typing import Any

import numpy as np

from toolchain.core import files
from toolchain.report import format, svg
from toolchain.report import html as page
from toolchain.report import write as report
from toolchain.report.table import Table

Report = Mapping[str, Any]
FAR = 2.5  # medians that the plot reaches to: a busy machine's stray ones lie far out


def write(found: Report, folder: Path) -> None:
    """Writes bench.json (with every raw sample), bench.md and bench.html."""
    files.write_json(folder / "bench.json", found)
    files.write_text(folder / "bench.md", markdown(found))
    files.write_text(folder / "bench.html", html(found))


def latencies(found: Report) -> Table:
    """How long each takes."""
    rows = tuple(
        (
            one["name"], f"{one['runtime']} {one['precision']}, {one['threads']} thread{'s' if one['threads'] > 1 else ''}",
            *(format.bounded(one["latency_ms"][which]) for which in ("p50", "p90", "p99")), format.percent(one["peak_share"]),
        )
        for one in found["subjects"]
    )  # fmt: skip
    columns = ("Model", "Runs as", "p50, ms", "p90, ms", "p99, ms", "Of peak")
    return Table(columns=columns, rows=rows, spare=(3, 5, 1))


def needs(found: Report) -> Table:
    """What each takes before it answers, and the room it takes."""
    rows = tuple(
        (
            one["name"], f"{one['load_ms']:.3g}", f"{one['first_ms']:.3g}", format.size(one["peak_rss_bytes"]),
            format.size(one["size_bytes"]), format.NONE if one["macs"] is None else f"{one['macs'] / 1e6:.3g} M",
        )
        for one in found["subjects"]
    )  # fmt: skip
    return Table(
        columns=("Model", "Load, ms", "First run, ms", "Peak memory", "On disk", "MACs"), rows=rows, spare=(5,)
    )


def ratios(found: Report) -> Table:
    """How many times faster each row is than each column."""
    names = [one["name"] for one in found["subjects"]]
    known = {(row["name"], row["than"]): format.ratio(row) for row in found["ratios"]}
    rows = tuple((name, *(known.get((name, than), "") for than in names)) for name in names)
    return Table(columns=("Times as fast as", *names), rows=rows if len(names) > 1 else ())


def throughput(found: Report) -> Table:
    """Pictures a second by batch size and threads."""
    rows = tuple(
        (
            one["name"], str(row["batch"]), str(row["threads"]),
            f"{row['p50_ms']:.3g}" if row["p50_ms"] else format.NONE,
            f"{row['images_per_second']:.0f}" if row["p50_ms"] else format.NONE, row["why"],
        )
        for one in found["subjects"]
        for row in one["throughput"]
    )  # fmt: skip
    told = any(row[-1] for row in rows)
    columns = ("Model", "Batch", "Threads", "p50, ms", "Pictures a second", "Why not")
    return Table(
        columns=columns if told else columns[:-1], rows=rows if told else tuple(r[:-1] for r in rows), prose=(0, 5)
    )


def sections(found: Report) -> tuple[tuple[str, Table], ...]:
    """What stands below the latencies."""
    return ("Ratios", ratios(found)), ("What each needs", needs(found)), ("Throughput", throughput(found))


def samples(found: Report) -> str:
    """How much stands behind the figures, on what machine."""
    computer = found["machine"]
    versions = ", ".join(f"{k} {v}" for one in found["versions"].values() for k, v in one.items())
    first = found["subjects"][0]["latency_ms"]["p50"]
    count = first["samples"] if first else 0
    return (
        f"{count} inferences each in {len(found['rounds'])} paired rounds, each a fresh process that all models share; "
        f"{computer['cpu']} ({computer['isa']}), {versions}"
    )


def markdown(found: Report) -> str:
    """The same for a pull request or a page of a wiki."""
    parts = ["# Latency", report.grid(latencies(found)), f"{report.inline(samples(found))}."]
    for title, content in sections(found):
        parts += [f"## {title}", report.grid(content)] if content.rows else []
    if found["warnings"]:
        parts += ["## Warnings", "\n".join(f"- {w['kind']}: {report.inline(w['text'])}" for w in found["warnings"])]
    return "\n\n".join(parts) + "\n"


def html(found: Report) -> str:
    """The page."""
    said = "".join(f"<p>Warning: {escape(w['text'])}</p>" for w in found["warnings"])
    parts = [
        f'<p class="lead">{escape(samples(found))}</p><h1>Latency</h1>',
        f'<div class="said warned">{said}</div>' if said else "",
        page.table(latencies(found)),
        f'<figure><div class="wide large">{plot(found)}</div><figcaption>Share of all inferences that took no longer; '
        "the steeper, the steadier. Beyond two and a half medians nothing is drawn.</figcaption></figure>",
        *(
            f"<section><h2>{title}</h2>{page.table(content)}</section>"
            for title, content in sections(found)
            if content.rows
        ),
    ]
    return page.PAGE.format(title="Latency", css=page.CSS, body="\n".join(part for part in parts if part))


def plot(found: Report) -> str:
    """Distribution of each subject's latencies."""
    with svg.figure(720, 300) as drawing:
        axes = drawing.add_axes((0.08, 0.16, 0.6, 0.78))
        most = 0.0
        for number, one in enumerate(found["subjects"]):
            taken = np.sort([s for row in found["rounds"] for block in row["blocks"][one["name"]] for s in block])
            colour, style = svg.LINES[number % len(svg.LINES)], ("-", "--", ":")[number // len(svg.LINES) % 3]
            axes.step(
                taken, 100 * np.arange(1, len(taken) + 1) / len(taken), color=colour, linestyle=style, label=one["name"]
            )
            most = max(most, min(float(taken[-1]), FAR * float(np.median(taken))))
        axes.set(xlim=(0, 1.05 * most), ylim=(0, 101), xlabel="milliseconds", ylabel="% of inferences")
        drawing.legend(loc="upper left", bbox_to_anchor=(0.69, 0.95), frameon=False)
        return svg.svg(drawing, "latency", "distribution of latencies")
