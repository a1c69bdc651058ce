"""What drift found: a table and a sentence for the terminal, JSON, and a page with every reading's distribution."""

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
    "fine": "leave it as it is",
    "recalibrate": (
        "the pictures are others than those it was tested on, and it answers about as surely: look at the camera, or collect "
        "new pictures and export again, so that ranges are drawn from them"
    ),
    "retrain": (
        "it answers otherwise than it did on the pictures it was tested on: see what the camera gives, label some new ones, see how "
        "accurate it still is, and train with them"
    ),
    "cannot_tell": "too few pictures",
}
UP_ABOVE, DOWN_BELOW = 0.55, 0.45  # chance of reading higher than the reference, beyond which a direction is named
MAX_LABEL_LENGTH = 40  # characters of a file's name in a legend, from its end
MAX_WINDOW_ROWS = 12  # windows in the terminal's table, the latest


def describe_verdict(found: DriftResult) -> str:
    """The answer in a line."""
    rate = found.false_alarms
    return (
        f"{found.bundle}: {found.verdict.upper().replace('_', ' ')}: {found.why}; {ADVICE[found.verdict]}. Of {rate.samples} "
        f"windows drawn from its own {found.reference} pictures {100 * rate.estimate:.1f} % [{100 * rate.low:.1f}, "
        f"{100 * rate.high:.1f}] would have been called"
    )


def tabulate_windows(found: DriftResult) -> list[Table]:
    """A row a window."""
    rows = tuple(
        (
            one.source, str(one.number), str(one.pictures), one.verdict, _words(one) or number_format.MISSING,
            f"{100 * one.expected_drop.estimate:+.1f} [{100 * one.expected_drop.low:+.1f}, "
            f"{100 * one.expected_drop.high:+.1f}]",
        )
        for one in found.windows[-MAX_WINDOW_ROWS:]
    )  # fmt: skip
    columns = ("Counters", "Window", "Pictures", "Verdict", "What moved", "Expected loss, points")
    return [Table(columns=columns, rows=rows, text_columns=(0, 3, 4), optional_columns=(2, 1))] if rows else []


def _words(window: Window) -> str:
    """Readings that were called, the most certain first, with their direction."""
    found = []
    for one in window.moved:
        if one.called:
            way = " up" if one.share > UP_ABOVE else " down" if one.share < DOWN_BELOW else ""
            found.append(one.reading + ("" if one.reading == "class" else way))
    return ", ".join(found)


def write(found: DriftResult, own: WatchedBundle, folder: Path) -> None:
    """`drift.json` and `drift.html`."""
    files.write_json(folder / "drift.json", {"schema": 1, **files.to_jsonable(found)})
    hint = (
        "Grey: the pictures that the model was tested on. Coloured: the window that moved the most, else the latest. "
        "A bin holds a tenth of the grey pictures where their values allow it."
    )
    parts = [
        f'<p class="lead">{escape(found.bundle)}</p>',
        f"<h1>{escape(found.verdict.replace('_', ' ').capitalize())}</h1>",
        html_page.notice([f"{describe_verdict(found)}."], warning=found.verdict != "fine"),
    ]
    if found.windows:
        called = [one for one in found.windows if one.verdict != "fine"]
        shown = min(called, key=lambda one: one.moved[0].p) if called else found.windows[-1]
        where = f"{shown.source}, window {shown.number}, {shown.pictures} pictures"
        parts.append(f"<h2>What moved</h2>{html_page.hint(f'{hint} Shown: {where}.')}")
        parts.append(html_page.plot(plot_distributions(shown, own)))
        caption = (
            "Accuracy that is lost by what the confidence tells; a lower bound where pictures are of another world."
        )
        parts.append(f"<h2>Window by window</h2>{html_page.plot(plot_expected_drop(found.windows), caption)}")
        parts += [html_page.render_table(table) for table in tabulate_windows(found)]
    files.write_text(folder / "drift.html", html_page.render_page(f"Drift of {found.bundle}", parts))


def plot_distributions(window: Window, own: WatchedBundle) -> str:
    """Every reading's bins, reference and window side by side."""
    names = (*watch.READINGS, "class")
    whole = own.reference.count_images(own.reference.count_bins(len(own.classes)))
    with svg.figure(720, 340) as drawing:
        for number, name in enumerate(names):
            axes = drawing.add_subplot(2, 4, number + 1)
            rows = np.array(window.counts[name]) / window.pictures, whole[name] / whole[name].sum()
            moved = next(one for one in window.moved if one.reading == name)
            places = np.arange(len(rows[0]))
            axes.bar(places - 0.2, 100 * rows[1], 0.4, color=svg.MUTED)
            axes.bar(places + 0.2, 100 * rows[0], 0.4, color=svg.WARM if moved.called else svg.MAIN)
            axes.set_title(f"{name}{' moved' if moved.called else ''}", fontsize=svg.FONT_SIZE, color=svg.INK)
            axes.set_xticks([])
            axes.grid(visible=False, axis="x")
            if number % 4 == 0:
                axes.set_ylabel("pictures, %")
        drawing.tight_layout()
        return svg.render(drawing, "distributions", "readings of the reference and of a window")


def plot_expected_drop(windows: Sequence[Window]) -> str:
    """Expected loss of every window in order, a line a file of counters."""
    with svg.figure(720, 220) as drawing:
        axes = drawing.add_axes((0.08, 0.2, 0.62, 0.7))
        for number, source in enumerate(dict.fromkeys(one.source for one in windows)):
            own = [one for one in windows if one.source == source]
            y = [100 * one.expected_drop.estimate for one in own]
            ends = [
                [100 * (one.expected_drop.estimate - one.expected_drop.low) for one in own],
                [100 * (one.expected_drop.high - one.expected_drop.estimate) for one in own],
            ]
            colour = svg.LINE_COLOURS[number % len(svg.LINE_COLOURS)]
            x = [one.number for one in own]
            axes.errorbar(
                x, y, yerr=ends, marker="o", markersize=4, linewidth=1, color=colour, label=source[-MAX_LABEL_LENGTH:]
            )
        axes.axhline(0, color=svg.MUTED, linewidth=0.8)
        axes.set_ylabel("expected loss, points")
        axes.set_xlabel("window")
        axes.set_xticks(range(1, max(one.number for one in windows) + 1))
        drawing.legend(loc="upper left", bbox_to_anchor=(0.71, 0.97), frameon=False)
        return svg.render(drawing, "course", "expected loss of accuracy by window")
