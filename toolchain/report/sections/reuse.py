"""How much of a pretrained network is worth keeping, as a table and a plot, for the report and for `select`."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from toolchain.core import files, progress
from toolchain.report import number_format, svg
from toolchain.report.table import Table

if TYPE_CHECKING:
    from toolchain.selection.reuse_advice import ReuseAdvice


JsonObject = Mapping[str, Any]
TITLE = "How much of the pretrained network is worth keeping"
REUSE_TEXT = {"keep": "cut behind", "fresh": "starts anew from", "freeze": "left as it is up to"}


def tabulate(found: JsonObject | None) -> Table:
    """A row a block, in order; the one that the proposal cuts behind is marked in words."""
    rows = tuple(
        (
            one["block"] + (" <" if one["block"] == (found or {})["reuse"]["keep"] else ""), number_format.count(one["macs"]),
            f"{one['levels']:.3f}", f"{one['untrained_levels']:.3f}", _percent(one["accuracy"]), _percent(one["untrained"]),
            number_format.points(one["gain"]["estimate"])
            + number_format.interval(one["gain"]["low"], one["gain"]["high"], number_format.points),
        )
        for one in (found["depths"] if found else ())
    )  # fmt: skip
    return Table(
        columns=("Up to", "MACs", "All levels", "Random", "Probe", "Random, probe", "Pretraining brings"),
        rows=rows,
        optional_columns=(5, 6),
    )


def _percent(one: Mapping[str, float]) -> str:
    return number_format.percent(one["estimate"]) + number_format.interval(
        one["low"], one["high"], number_format.percent
    )


def describe(found: JsonObject) -> str:
    """The proposal and why."""
    parts = [f"{text} {found['reuse'][name]}" for name, text in REUSE_TEXT.items() if found["reuse"][name]]
    faster = (
        f", {number_format.multiple(found['speedup'])} as fast as the whole"
        if found["reuse"]["keep"] and found["speedup"]
        else ""
    )
    return f"{found['model']}: {'; '.join(parts) or 'all of it is used'}{faster}: {'; '.join(found['why'])}"


def announce(advice: "ReuseAdvice | None") -> None:
    """The same on the way; where nobody looked behind the blocks, that has been said."""
    if advice and advice.depths:
        progress.log(f"advise: {describe(files.to_jsonable(advice))}")


def plot_depths(found: JsonObject) -> str:
    """By block, pretrained and random: the score that the proposal follows, and the probe with its 95 % intervals.

    "" where nobody looked.
    """
    depths: Sequence[Any] = found["depths"]
    if not depths:
        return ""
    places = range(len(depths))
    with svg.figure(720, 460) as drawing:
        followed, probed = drawing.subplots(2, 1, sharex=True)
        drawing.subplots_adjust(left=0.09, right=0.97, top=0.93, bottom=0.2, hspace=0.12)
        for level, share, colour, title in (
            ("untrained_levels", "untrained", svg.MUTED, "random weights"),
            ("levels", "accuracy", svg.MAIN, "pretrained"),
        ):
            drawn = {"color": colour, "marker": "o", "markersize": 3, "label": title}
            followed.plot(places, [one[level] for one in depths], **drawn)
            probed.plot(places, [one[share]["estimate"] for one in depths], **drawn)
            low, high = ([one[share][end] for one in depths] for end in ("low", "high"))
            probed.fill_between(places, low, high, color=colour, alpha=0.15)
        if found["reuse"]["keep"]:
            kept = [one["block"] for one in depths].index(found["reuse"]["keep"])
            for axes in (followed, probed):
                axes.axvline(kept, color=svg.WARM, linewidth=1, linestyle="--", label="cut behind")
        probed.set_xticks(
            list(places), [number_format.shorten_name(one["block"]) for one in depths], rotation=60, ha="right"
        )
        probed.yaxis.set_major_formatter(lambda value, _: number_format.percent(value))
        followed.set(ylabel="all levels (followed)")
        probed.set(ylabel="probe, validation")
        followed.legend(frameon=False, loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=3)
        return svg.render(drawing, "reuse", "score and probe accuracy by depth")
