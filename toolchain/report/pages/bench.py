"""What `bench` found, as tables, JSON, Markdown and one HTML page with a plot."""

from html import escape
from pathlib import Path

import numpy as np

from toolchain.core import files
from toolchain.core.types import JsonObject
from toolchain.report import html_page, markdown, number_format, svg
from toolchain.report.table import Table

MAX_PLOTTED_MEDIANS = 2.5  # medians that the plot reaches to: a busy machine's stray ones lie far out


def write(found: JsonObject, folder: Path) -> None:
    """Writes bench.json (with every raw sample), bench.md and bench.html."""
    files.write_json(folder / "bench.json", found)
    files.write_text(folder / "bench.md", render_markdown(found))
    files.write_text(folder / "bench.html", render_html(found))


def tabulate_latencies(found: JsonObject) -> Table:
    """How long each takes."""
    rows = tuple(
        (
            one["name"], f"{one['runtime']} {one['precision']}, {one['threads']} thread{'s' if one['threads'] > 1 else ''}",
            *(number_format.with_interval(one["latency_ms"][which]) for which in ("p50", "p90", "p99")), number_format.percent(one["peak_share"]),
        )
        for one in found["subjects"]
    )  # fmt: skip
    columns = ("Model", "Runs as", "p50, ms", "p90, ms", "p99, ms", "Of peak")
    return Table(columns=columns, rows=rows, optional_columns=(3, 5, 1))


def tabulate_footprint(found: JsonObject) -> Table:
    """What each takes before it answers, and the room it takes."""
    rows = tuple(
        (
            one["name"], f"{one['load_ms']:.3g}", f"{one['first_ms']:.3g}", number_format.byte_size(one["peak_rss_bytes"]),
            number_format.byte_size(one["size_bytes"]), number_format.MISSING if one["macs"] is None else f"{one['macs'] / 1e6:.3g} M",
        )
        for one in found["subjects"]
    )  # fmt: skip
    return Table(
        columns=("Model", "Load, ms", "First run, ms", "Peak memory", "On disk", "MACs"),
        rows=rows,
        optional_columns=(5,),
    )


def tabulate_speedups(found: JsonObject) -> Table:
    """How many times faster each row is than each column."""
    names = [one["name"] for one in found["subjects"]]
    known = {(row["name"], row["than"]): number_format.speedup(row) for row in found["ratios"]}
    rows = tuple((name, *(known.get((name, than), "") for than in names)) for name in names)
    return Table(columns=("Times as fast as", *names), rows=rows if len(names) > 1 else ())


def tabulate_throughput(found: JsonObject) -> Table:
    """Pictures a second by batch size and threads."""
    rows = tuple(
        (
            one["name"], str(row["batch"]), str(row["threads"]),
            f"{row['p50_ms']:.3g}" if row["p50_ms"] else number_format.MISSING,
            f"{row['images_per_second']:.0f}" if row["p50_ms"] else number_format.MISSING, row["why"],
        )
        for one in found["subjects"]
        for row in one["throughput"]
    )  # fmt: skip
    told = any(row[-1] for row in rows)
    columns = ("Model", "Batch", "Threads", "p50, ms", "Pictures a second", "Why not")
    return Table(
        columns=columns if told else columns[:-1],
        rows=rows if told else tuple(r[:-1] for r in rows),
        text_columns=(0, 5),
    )


def list_further_tables(found: JsonObject) -> tuple[tuple[str, Table], ...]:
    """What stands below the latencies."""
    return (
        ("Ratios", tabulate_speedups(found)),
        ("What each needs", tabulate_footprint(found)),
        ("Throughput", tabulate_throughput(found)),
    )


def describe_measurement(found: JsonObject) -> str:
    """How much stands behind the figures, on what machine."""
    computer = found["machine"]
    versions = ", ".join(f"{k} {v}" for one in found["versions"].values() for k, v in one.items())
    first = found["subjects"][0]["latency_ms"]["p50"]
    count = first["samples"] if first else 0
    return (
        f"{count} inferences each in {len(found['rounds'])} paired rounds, each a fresh process that all models share; "
        f"{computer['cpu']} ({computer['isa']}), {versions}"
    )


def render_markdown(found: JsonObject) -> str:
    """Return all tables in Markdown, for a merge request or a wiki."""
    parts = [
        "# Latency",
        markdown.format_table(tabulate_latencies(found)),
        f"{markdown.escape(describe_measurement(found))}.",
        *(markdown.format_section(title, table) for title, table in list_further_tables(found)),
    ]
    if found["warnings"]:
        parts += ["## Warnings", "\n".join(f"- {w['kind']}: {markdown.escape(w['text'])}" for w in found["warnings"])]
    return "\n\n".join(part for part in parts if part) + "\n"


CAPTION = "Share of all inferences that took no longer; the steeper, the steadier. Beyond two and a half medians nothing is drawn."


def render_html(found: JsonObject) -> str:
    """Return the page."""
    parts = (
        f'<p class="lead">{escape(describe_measurement(found))}</p><h1>Latency</h1>',
        html_page.notice((f"Warning: {w['text']}" for w in found["warnings"]), warning=True),
        html_page.render_table(tabulate_latencies(found)),
        html_page.plot(plot_distributions(found), CAPTION),
        *(html_page.section(title, html_page.render_table(table)) for title, table in list_further_tables(found)),
    )
    return html_page.render_page("Latency", parts)


def plot_distributions(found: JsonObject) -> str:
    """Distribution of each subject's latencies."""
    with svg.figure(720, 300) as drawing:
        axes = drawing.add_axes((0.08, 0.16, 0.6, 0.78))
        most = 0.0
        for number, one in enumerate(found["subjects"]):
            taken = np.sort([s for row in found["rounds"] for block in row["blocks"][one["name"]] for s in block])
            colour, style = (
                svg.LINE_COLOURS[number % len(svg.LINE_COLOURS)],
                ("-", "--", ":")[number // len(svg.LINE_COLOURS) % 3],
            )
            axes.step(
                taken, 100 * np.arange(1, len(taken) + 1) / len(taken), color=colour, linestyle=style, label=one["name"]
            )
            most = max(most, min(float(taken[-1]), MAX_PLOTTED_MEDIANS * float(np.median(taken))))
        axes.set(xlim=(0, 1.05 * most), ylim=(0, 101), xlabel="milliseconds", ylabel="% of inferences")
        drawing.legend(loc="upper left", bbox_to_anchor=(0.69, 0.95), frameon=False)
        return svg.render(drawing, "latency", "distribution of latencies")
