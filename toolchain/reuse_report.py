"""How much of a pretrained network is worth keeping, as a table and a plot, for the report and for `select`."""

from collections.abc import Mapping, Sequence
from typing import Any

from toolchain import canvas, figures
from toolchain.tables import Table

Found = Mapping[str, Any]
TITLE = "How much of the pretrained network is worth keeping"
PARTS = {"keep": "cut behind", "fresh": "starts anew from", "freeze": "left as it is up to"}


def table(found: Found | None) -> Table:
    """A row a block, in order; the one that the proposal cuts behind is marked in words."""
    rows = tuple(
        (
            one["block"] + (" <" if one["block"] == (found or {})["reuse"]["keep"] else ""), figures.count(one["macs"]),
            f"{one['levels']:.3f}", f"{one['untrained_levels']:.3f}", _percent(one["accuracy"]), _percent(one["untrained"]),
            figures.points(one["gain"]["estimate"])
            + figures.interval(one["gain"]["low"], one["gain"]["high"], figures.points),
        )
        for one in (found["depths"] if found else ())
    )  # fmt: skip
    return Table(
        columns=("Up to", "MACs", "All levels", "Random", "Probe", "Random, probe", "Pretraining brings"),
        rows=rows,
        spare=(5, 6),
    )


def _percent(one: Mapping[str, float]) -> str:
    return figures.percent(one["estimate"]) + figures.interval(one["low"], one["high"], figures.percent)


def said(found: Found) -> str:
    """The proposal and why."""
    parts = [f"{text} {found['reuse'][name]}" for name, text in PARTS.items() if found["reuse"][name]]
    faster = (
        f", {figures.times(found['speedup'])} as fast as the whole"
        if found["reuse"]["keep"] and found["speedup"]
        else ""
    )
    return f"{found['model']}: {'; '.join(parts) or 'all of it is used'}{faster}: {'; '.join(found['why'])}"


def plot(found: Found) -> str:
    """Probe accuracy behind each block, pretrained and random, with 95 % intervals; "" where nobody looked."""
    depths: Sequence[Any] = found["depths"]
    if not depths:
        return ""
    places = range(len(depths))
    with canvas.figure(720, 300) as drawing:
        axes = drawing.add_axes((0.09, 0.3, 0.88, 0.64))
        for name, colour, title in (
            ("untrained", canvas.MUTED, "random weights"),
            ("accuracy", canvas.MAIN, "pretrained"),
        ):
            axes.fill_between(
                places,
                [one[name]["low"] for one in depths],
                [one[name]["high"] for one in depths],
                color=colour,
                alpha=0.15,
            )
            axes.plot(
                places, [one[name]["estimate"] for one in depths], color=colour, marker="o", markersize=3, label=title
            )
        kept = [one["block"] for one in depths].index(found["reuse"]["keep"] or depths[-1]["block"])
        axes.axvline(kept, color=canvas.WARM, linewidth=1, linestyle="--", label="cut behind")
        axes.set_xticks(list(places), [figures.end(one["block"]) for one in depths], rotation=60, ha="right")
        axes.yaxis.set_major_formatter(lambda value, _: figures.percent(value))
        axes.set(ylabel="probe, validation")
        axes.legend(frameon=False, loc="lower right")
        return canvas.svg(drawing, "reuse", "probe accuracy by depth")
