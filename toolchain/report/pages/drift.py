"""The result of a drift check: a table and a sentence for the terminal, JSON, and a page with all distributions."""

from collections.abc import Sequence
from html import escape
from pathlib import Path

import numpy as np

from toolchain.core import files
from toolchain.deploy.drift import DriftResult, Window
from toolchain.deploy.drift_reference import WatchedBundle
from toolchain.edge import watch
from toolchain.report import html_page, number_format, svg
from toolchain.report.table import Table

ADVICE = {
    "fine": "nothing to do",
    "recalibrate": (
        "the images differ from those that the model was tested on, and its confidence is about the same: check the camera, or "
        "collect new images and export again, so that activation ranges are calibrated on them"
    ),
    "retrain": (
        "the model's predictions differ from those on the images that it was tested on: check the camera, label some new images, "
        "measure the accuracy on them, and train with them"
    ),
    "cannot_tell": "there are too few images; let the board collect more",
}
UP_ABOVE, DOWN_BELOW = 0.55, 0.45  # share of the reference below the window's typical value that names a direction
MAX_LABEL_LENGTH = 40  # characters in a legend, from the end of the name
MAX_WINDOW_ROWS = 12  # in the terminal's table, the latest


def describe_verdict(result: DriftResult) -> str:
    """Return the verdict, what to do, and the false-alarm rate in one line."""
    rate = result.false_alarms
    return (
        f"{result.bundle}: {result.verdict.upper().replace('_', ' ')}: {result.why}; {ADVICE[result.verdict]}. Of {rate.samples} "
        f"windows drawn from its own {result.reference} reference images {100 * rate.estimate:.1f} % [{100 * rate.low:.1f}, "
        f"{100 * rate.high:.1f}] would have raised an alarm"
    )


def tabulate_windows(result: DriftResult) -> list[Table]:
    """Return a row per window, the latest MAX_WINDOW_ROWS; no table without windows."""
    rows = tuple(
        (
            window.source, str(window.number), str(window.pictures), window.verdict, _describe_shifts(window) or number_format.MISSING,
            f"{100 * window.expected_drop.estimate:+.1f} [{100 * window.expected_drop.low:+.1f}, "
            f"{100 * window.expected_drop.high:+.1f}]",
        )
        for window in result.windows[-MAX_WINDOW_ROWS:]
    )  # fmt: skip
    columns = ("Counters", "Window", "Images", "Verdict", "What moved", "Expected drop, pt")
    return [Table(columns=columns, rows=rows, text_columns=(0, 3, 4), optional_columns=(2, 1))] if rows else []


def _describe_shifts(window: Window) -> str:
    """Return the readings that moved, the most certain first, each with its direction."""
    texts = []
    for shift in window.moved:
        if shift.called:
            direction = " up" if shift.share > UP_ABOVE else " down" if shift.share < DOWN_BELOW else ""
            texts.append(shift.reading + ("" if shift.reading == "class" else direction))
    return ", ".join(texts)


def write(result: DriftResult, bundle: WatchedBundle, folder: Path) -> None:
    """Write drift.json and drift.html.

    Args:
        result: of all windows.
        bundle: the one that the counters are of.
        folder: of both files.
    """
    files.write_json(folder / "drift.json", {"schema": 1, **files.to_jsonable(result)})
    hint = (
        "Grey: the images that the model was tested on. Coloured: the window that moved most, or else the latest. "
        "Each bin holds a tenth of the grey images where their values allow it."
    )
    parts = [
        f'<p class="lead">{escape(result.bundle)}</p>',
        f"<h1>{escape(result.verdict.replace('_', ' ').capitalize())}</h1>",
        html_page.notice([f"{describe_verdict(result)}."], warning=result.verdict != "fine"),
    ]
    if result.windows:
        moved = [window for window in result.windows if window.verdict != "fine"]
        shown = min(moved, key=lambda window: window.moved[0].p) if moved else result.windows[-1]
        where = f"{shown.source}, window {shown.number}, {shown.pictures} images"
        parts.append(f"<h2>What moved</h2>{html_page.hint(f'{hint} Shown: {where}.')}")
        parts.append(html_page.plot(plot_distributions(shown, bundle)))
        caption = "Expected accuracy drop, estimated from the confidence; a lower bound where the images are of another domain."
        parts.append(f"<h2>Window by window</h2>{html_page.plot(plot_expected_drop(result.windows), caption)}")
        parts += [html_page.render_table(table) for table in tabulate_windows(result)]
    files.write_text(folder / "drift.html", html_page.render_page(f"Drift of {result.bundle}", parts))


def plot_distributions(window: Window, bundle: WatchedBundle) -> str:
    """Plot the bins of every reading, the reference and the window side by side."""
    names = (*watch.READINGS, "class")
    whole = bundle.reference.count_images(bundle.reference.count_bins(len(bundle.classes)))
    with svg.figure(720, 340) as drawing:
        for number, name in enumerate(names):
            axes = drawing.add_subplot(2, 4, number + 1)
            rows = np.array(window.counts[name]) / window.pictures, whole[name] / whole[name].sum()
            shift = next(shift for shift in window.moved if shift.reading == name)
            places = np.arange(len(rows[0]))
            axes.bar(places - 0.2, 100 * rows[1], 0.4, color=svg.MUTED)
            axes.bar(places + 0.2, 100 * rows[0], 0.4, color=svg.WARM if shift.called else svg.MAIN)
            axes.set_title(f"{name}{' moved' if shift.called else ''}", fontsize=svg.FONT_SIZE, color=svg.INK)
            axes.set_xticks([])
            axes.grid(visible=False, axis="x")
            if number % 4 == 0:
                axes.set_ylabel("images, %")
        drawing.tight_layout()
        return svg.render(drawing, "distributions", "readings of the reference and of a window")


def plot_expected_drop(windows: Sequence[Window]) -> str:
    """Plot the expected accuracy drop of every window in order, a line for each file of counters."""
    with svg.figure(720, 220) as drawing:
        axes = drawing.add_axes((0.08, 0.2, 0.62, 0.7))
        for number, source in enumerate(dict.fromkeys(window.source for window in windows)):
            same_source = [window for window in windows if window.source == source]
            y = [100 * window.expected_drop.estimate for window in same_source]
            ends = [
                [100 * (window.expected_drop.estimate - window.expected_drop.low) for window in same_source],
                [100 * (window.expected_drop.high - window.expected_drop.estimate) for window in same_source],
            ]
            colour = svg.LINE_COLOURS[number % len(svg.LINE_COLOURS)]
            x = [window.number for window in same_source]
            axes.errorbar(
                x, y, yerr=ends, marker="o", markersize=4, linewidth=1, color=colour, label=source[-MAX_LABEL_LENGTH:]
            )
        axes.axhline(0, color=svg.MUTED, linewidth=0.8)
        axes.set_ylabel("expected drop, pt")
        axes.set_xlabel("window")
        axes.set_xticks(range(1, max(window.number for window in windows) + 1))
        drawing.legend(loc="upper left", bbox_to_anchor=(0.71, 0.97), frameon=False)
        return svg.render(drawing, "course", "expected accuracy drop by window")
