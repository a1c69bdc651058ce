"""Results of `toolchain bench` as tables, JSON, Markdown and one HTML page with a plot."""

from html import escape
from pathlib import Path

import numpy as np

from toolchain.core import files
from toolchain.core.types import JsonObject
from toolchain.report import html_page, markdown, number_format, svg
from toolchain.report.table import Table

MAX_PLOTTED_MEDIANS = 2.5  # times the median that the plot reaches to: outliers of a busy machine lie far out
LINE_STYLES = "-", "--", ":"  # where there are more models than colours


def write(result: JsonObject, folder: Path) -> None:
    """Write bench.json (with every raw sample), bench.md and bench.html."""
    files.write_json(folder / "bench.json", result)
    files.write_text(folder / "bench.md", render_markdown(result))
    files.write_text(folder / "bench.html", render_html(result))


def tabulate_latencies(result: JsonObject) -> Table:
    """Return a row per model: runtime, precision, threads, and the percentiles of its latency."""
    rows = tuple(
        (
            subject["name"],
            f"{subject['runtime']} {subject['precision']}, {subject['threads']} thread{'s' if subject['threads'] > 1 else ''}",
            *(number_format.with_interval(subject["latency_ms"][percentile]) for percentile in ("p50", "p90", "p99")),
            number_format.percent(subject["peak_share"]),
        )
        for subject in result["subjects"]
    )  # fmt: skip
    columns = ("Model", "Runs as", "p50, ms", "p90, ms", "p99, ms", "Of peak")
    return Table(columns=columns, rows=rows, optional_columns=(3, 5, 1))


def tabulate_footprint(result: JsonObject) -> Table:
    """Return a row per model: start-up times, memory, size on disk and multiply-accumulates."""
    rows = tuple(
        (
            subject["name"], f"{subject['load_ms']:.3g}", f"{subject['first_ms']:.3g}",
            number_format.byte_size(subject["peak_rss_bytes"]), number_format.byte_size(subject["size_bytes"]),
            number_format.MISSING if subject["macs"] is None else f"{subject['macs'] / 1e6:.3g} M",
        )
        for subject in result["subjects"]
    )  # fmt: skip
    return Table(
        columns=("Model", "Load, ms", "First run, ms", "Peak memory", "On disk", "MACs"),
        rows=rows,
        optional_columns=(5,),
    )


def tabulate_speedups(result: JsonObject) -> Table:
    """Return how many times as fast each row's model is as each column's."""
    names = [subject["name"] for subject in result["subjects"]]
    speedups = {(ratio["name"], ratio["than"]): number_format.speedup(ratio) for ratio in result["ratios"]}
    rows = tuple((name, *(speedups.get((name, other), "") for other in names)) for name in names)
    return Table(columns=("Times as fast as", *names), rows=rows if len(names) > 1 else ())


def tabulate_throughput(result: JsonObject) -> Table:
    """Return images per second by model, batch size and threads; why not, where a model did not run."""
    rows = tuple(
        (
            subject["name"], str(row["batch"]), str(row["threads"]),
            f"{row['p50_ms']:.3g}" if row["p50_ms"] else number_format.MISSING,
            f"{row['images_per_second']:.0f}" if row["p50_ms"] else number_format.MISSING, row["why"],
        )
        for subject in result["subjects"]
        for row in subject["throughput"]
    )  # fmt: skip
    any_failed = any(row[-1] for row in rows)
    columns = ("Model", "Batch", "Threads", "p50, ms", "Images per second", "Why not")
    return Table(
        columns=columns if any_failed else columns[:-1],
        rows=rows if any_failed else tuple(r[:-1] for r in rows),
        text_columns=(0, 5),
    )


def list_further_tables(result: JsonObject) -> tuple[tuple[str, Table], ...]:
    """Return the tables below the latencies, each with its title."""
    return (
        ("Speed-up", tabulate_speedups(result)),
        ("Memory and start-up time", tabulate_footprint(result)),
        ("Throughput", tabulate_throughput(result)),
    )


def describe_measurement(result: JsonObject) -> str:
    """Return the number of inferences, the machine and the versions in one line."""
    machine = result["machine"]
    versions = ", ".join(f"{k} {v}" for library in result["versions"].values() for k, v in library.items())
    first = result["subjects"][0]["latency_ms"]["p50"]
    count = first["samples"] if first else 0
    return (
        f"{count} inferences each, in {len(result['rounds'])} paired rounds, each a fresh process in which all models take turns; "
        f"{machine['cpu']} ({machine['isa']}), {versions}"
    )


def render_markdown(result: JsonObject) -> str:
    """Return all tables in Markdown, for a merge request or a wiki."""
    parts = [
        "# Latency",
        markdown.format_table(tabulate_latencies(result)),
        f"{markdown.escape(describe_measurement(result))}.",
        *(markdown.format_section(title, table) for title, table in list_further_tables(result)),
    ]
    if result["warnings"]:
        parts += ["## Warnings", "\n".join(f"- {w['kind']}: {markdown.escape(w['text'])}" for w in result["warnings"])]
    return "\n\n".join(part for part in parts if part) + "\n"


CAPTION = "Share of inferences that took no longer than this; the steeper, the more constant. Cut off at 2.5 times the median."


def render_html(result: JsonObject) -> str:
    """Return the page."""
    parts = (
        f'<p class="lead">{escape(describe_measurement(result))}</p><h1>Latency</h1>',
        html_page.notice((f"Warning: {w['text']}" for w in result["warnings"]), warning=True),
        html_page.render_table(tabulate_latencies(result)),
        html_page.plot(plot_distributions(result), CAPTION),
        *(html_page.section(title, html_page.render_table(table)) for title, table in list_further_tables(result)),
    )
    return html_page.render_page("Latency", parts)


def plot_distributions(result: JsonObject) -> str:
    """Plot the cumulative distribution of each model's latency."""
    with svg.figure(720, 300) as drawing:
        axes = drawing.add_axes((0.08, 0.16, 0.6, 0.78))
        longest = 0.0
        for number, subject in enumerate(result["subjects"]):
            blocks = [block for row in result["rounds"] for block in row["blocks"][subject["name"]]]
            latencies = np.sort([latency for block in blocks for latency in block])
            shares = 100 * np.arange(1, len(latencies) + 1) / len(latencies)
            colour = svg.LINE_COLOURS[number % len(svg.LINE_COLOURS)]
            line = LINE_STYLES[number // len(svg.LINE_COLOURS) % len(LINE_STYLES)]
            axes.step(latencies, shares, color=colour, linestyle=line, label=subject["name"])
            longest = max(longest, min(float(latencies[-1]), MAX_PLOTTED_MEDIANS * float(np.median(latencies))))
        axes.set(xlim=(0, 1.05 * longest), ylim=(0, 101), xlabel="milliseconds", ylabel="% of inferences")
        drawing.legend(loc="upper left", bbox_to_anchor=(0.69, 0.95), frameon=False)
        return svg.render(drawing, "latency", "distribution of latencies")
