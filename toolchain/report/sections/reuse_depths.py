"""Report section: how many of a pretrained network's blocks are worth keeping, and what pretraining brings at each."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from toolchain.core import files, progress
from toolchain.core.run_report import RunReport
from toolchain.core.types import JsonObject
from toolchain.report import html_page, markdown, number_format, svg
from toolchain.report.table import Table

if TYPE_CHECKING:
    from toolchain.selection.reuse_advice import ReuseAdvice

TITLE = "How much of the pretrained network to keep"
ORDER = 50
REUSE_TEXT = {"keep": "cut after", "fresh": "new weights from", "freeze": "frozen up to"}


def tabulate(report: RunReport) -> Table:
    """Return a row per block; none where the recipe says how much is used."""
    return tabulate_depths(_read_advice(report))


def _read_advice(report: RunReport) -> JsonObject | None:
    advice: JsonObject | None = (report.get("reuse") or {}).get("advice")
    return advice


def tabulate_depths(advice: JsonObject | None) -> Table:
    """Return a row per block, from the input to the output; `<` marks the block that the advice cuts after."""
    depths = advice["depths"] if advice else ()
    kept = advice["reuse"]["keep"] if advice else ""
    rows = tuple(
        (
            depth["block"] + (" <" if depth["block"] == kept else ""), number_format.count(depth["macs"]),
            f"{depth['levels']:.3f}", f"{depth['untrained_levels']:.3f}",
            _format_accuracy(depth["accuracy"]), _format_accuracy(depth["untrained"]),
            number_format.accuracy_gain(depth["gain"]),
        )
        for depth in depths
    )  # fmt: skip
    columns = ("Up to block", "MACs", "Levels", "Levels, random", "Probe", "Probe, random", "Pretraining gain")
    return Table(columns=columns, rows=rows, optional_columns=(5, 6))


def _format_accuracy(accuracy: Mapping[str, float]) -> str:
    bounds = number_format.interval(accuracy["low"], accuracy["high"], number_format.percent)
    return number_format.percent(accuracy["estimate"]) + bounds


def describe(advice: JsonObject) -> str:
    """Return the advice and its reasons in one line."""
    reuse = advice["reuse"]
    parts = [f"{text} {reuse[name]}" for name, text in REUSE_TEXT.items() if reuse[name]]
    speedup = ""
    if reuse["keep"] and advice["speedup"]:
        speedup = f", {number_format.multiple(advice['speedup'])} as fast as the whole network"
    return f"{advice['model']}: {'; '.join(parts) or 'the whole network is used'}{speedup}: {'; '.join(advice['why'])}"


def announce(advice: "ReuseAdvice | None") -> None:
    """Log the advice during a run; advice without depths has been logged where it was made."""
    if advice and advice.depths:
        progress.log(f"advise: {describe(files.to_jsonable(advice))}")


def render_markdown(report: RunReport) -> str:
    """Return the advice above its table, which is missing where no depths were assessed."""
    advice = _read_advice(report)
    return render_advice(advice) if advice else ""


def render_advice(advice: JsonObject) -> str:
    """Return the section in Markdown."""
    table = tabulate_depths(advice)
    content = f"\n\n{markdown.format_table(table)}" if table.rows else ""
    return f"## {TITLE}\n\n{markdown.escape(describe(advice))}.{content}"


def render_html(report: RunReport) -> tuple[str, ...]:
    """Return the curves behind the advice and their table; the advice alone where no depths were assessed."""
    advice = _read_advice(report)
    if not advice:
        return ()
    if not advice["depths"]:
        return (html_page.hint(f"{describe(advice)}."),)
    return html_page.plot(plot_depths(advice), f"{describe(advice)}."), html_page.render_table(tabulate_depths(advice))


def plot_depths(advice: JsonObject) -> str:
    """Plot two scores by block, pretrained and random: the one that the advice follows, and the probe's accuracy.

    The probe has its 95 % intervals. Returns "" where no depths were assessed.
    """
    depths: Sequence[Any] = advice["depths"]
    if not depths:
        return ""
    places = range(len(depths))
    with svg.figure(720, 460) as drawing:
        followed, probed = drawing.subplots(2, 1, sharex=True)
        drawing.subplots_adjust(left=0.09, right=0.97, top=0.93, bottom=0.2, hspace=0.12)
        for score, accuracy, colour, label in (
            ("untrained_levels", "untrained", svg.MUTED, "random weights"),
            ("levels", "accuracy", svg.MAIN, "pretrained"),
        ):
            style = {"color": colour, "marker": "o", "markersize": 3, "label": label}
            followed.plot(places, [depth[score] for depth in depths], **style)
            probed.plot(places, [depth[accuracy]["estimate"] for depth in depths], **style)
            low, high = ([depth[accuracy][bound] for depth in depths] for bound in ("low", "high"))
            probed.fill_between(places, low, high, color=colour, alpha=0.15)
        if advice["reuse"]["keep"]:
            kept = [depth["block"] for depth in depths].index(advice["reuse"]["keep"])
            for axes in (followed, probed):
                axes.axvline(kept, color=svg.WARM, linewidth=1, linestyle="--", label="cut here")
        names = [number_format.shorten_name(depth["block"]) for depth in depths]
        probed.set_xticks(list(places), names, rotation=60, ha="right")
        probed.yaxis.set_major_formatter(lambda value, _: number_format.percent(value))
        followed.set(ylabel="score of all levels (decides)")
        probed.set(ylabel="probe accuracy, validation")
        followed.legend(frameon=False, loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=3)
        return svg.render(drawing, "reuse", "Score and probe accuracy by depth")


if TYPE_CHECKING:
    from toolchain.report.section import MarkdownSection
    from toolchain.report.sections import reuse_depths as _this_module

    _: MarkdownSection = _this_module  # mypy compares this module with the protocol
