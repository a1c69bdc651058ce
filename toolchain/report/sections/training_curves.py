"""Report section: epochs, loss and validation accuracy of every training step, as a plot and a table."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from toolchain.core.run_report import RunReport
from toolchain.report import html_page, number_format, svg
from toolchain.report.svg import FONT_SIZE, INK, MAIN
from toolchain.report.table import Table, sort_steps

if TYPE_CHECKING:
    from matplotlib.axes import Axes

TITLE = "Training"
ORDER = 90
CAPTION = "Validation accuracy at the end of each epoch. Large dot: the epoch whose weights are kept."


def tabulate(report: RunReport) -> Table:
    """Return a row per training step: epochs, best and last validation accuracy, last loss."""
    steps, rows = report.get("training") or {}, []
    for name in sort_steps(steps):
        accuracies = [e["accuracy"] for e in steps[name] if not number_format.is_missing(e.get("accuracy"))]
        losses = [e["loss"] for e in steps[name] if not number_format.is_missing(e.get("loss"))]
        best, last = (max(accuracies), accuracies[-1]) if accuracies else (None, None)
        loss = number_format.significant(losses[-1] if losses else None)
        rows.append((name, str(len(steps[name])), number_format.percent(best), number_format.percent(last), loss))
    return Table(columns=("Step", "Epochs", "Best accuracy", "Last accuracy", "Last loss"), rows=tuple(rows))


def render_html(report: RunReport) -> tuple[str, ...]:
    """Return the plot and the table; where no epoch has an accuracy there is no plot, and so no section."""
    return html_page.plot(plot_training(report), CAPTION), html_page.render_table(tabulate(report))


def plot_training(report: RunReport) -> str:
    """Plot the validation accuracy over the epochs of each training step, side by side on one scale."""
    curves = {name: _read_curve(epochs) for name, epochs in (report.get("training") or {}).items()}
    names = [name for name in sort_steps(curves) if curves[name]]
    if not names:
        return ""
    accuracies = [accuracy for curve in curves.values() for _, accuracy in curve]
    pad = 0.08 * (max(accuracies) - min(accuracies)) or 0.01
    with svg.figure(800, 220) as drawing:
        for column, name in enumerate(names):
            share = 0.915 / len(names)
            axes = drawing.add_axes((0.075 + column * share, 0.18, share - 0.02, 0.68))
            _draw_step(axes, name, curves[name], first=column == 0)
            axes.set_ylim(min(accuracies) - pad, max(accuracies) + 2 * pad)
        return svg.render(drawing, "training", "Validation accuracy over the epochs of each step")


def _read_curve(epochs: Sequence[Mapping[str, Any]]) -> list[tuple[int, float]]:
    return [(e["epoch"], e["accuracy"]) for e in epochs if not number_format.is_missing(e.get("accuracy"))]


def _draw_step(axes: "Axes", name: str, curve: Sequence[tuple[int, float]], *, first: bool) -> None:
    """Draw one step's curve and mark the best epoch, whose weights the next step starts from."""
    from matplotlib.ticker import MaxNLocator

    epochs, accuracies = zip(*curve, strict=True)
    axes.plot(epochs, accuracies, "-", color=MAIN, linewidth=1.8, marker="o", markersize=3)
    best = max(range(len(epochs)), key=accuracies.__getitem__)
    axes.plot(epochs[best], accuracies[best], "o", color=MAIN, markersize=7)
    side = "right" if best > len(epochs) / 2 else "left"
    point, offset = (epochs[best], accuracies[best]), (0, 8)
    label = number_format.percent(accuracies[best])
    axes.annotate(label, point, offset, textcoords="offset points", ha=side, color=MAIN)
    axes.set_title(name, loc="left", fontsize=FONT_SIZE, color=INK)
    axes.set_xlabel("epoch")
    axes.xaxis.set_major_locator(MaxNLocator(5, integer=True, min_n_ticks=1))
    axes.margins(x=0.1)
    axes.tick_params(axis="y", left=first)
    axes.yaxis.set_major_formatter((lambda value, _: f"{100 * value:.4g} %") if first else (lambda *_: ""))


if TYPE_CHECKING:
    from toolchain.report.section import Section
    from toolchain.report.sections import training_curves as _this_module

    _: Section = _this_module  # mypy compares this module with the protocol
