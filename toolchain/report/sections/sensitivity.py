"""How much each group of channels and each residual block matters, read out of a report for its plots and tables."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from toolchain.core.run_report import RunReport
from toolchain.report import number_format
from toolchain.report.table import Table

ROWS_AT_EACH_END = 3  # curves at either end of a short table
TABULATED_SHARES = (0.25, 0.5, 0.75)
MAX_SHARE_DISTANCE, EQUAL_SHARE_DISTANCE = (
    0.125,
    0.02,
)  # a share that stands for another; a share that is as good as another
REASON_TEXT = {  # no points
    "protected": "protected",
    "too narrow": "too narrow",
    "no time": "no time",
    "does not run": "cannot run",
}


@dataclass(frozen=True)
class PlottedCurve:
    """One group or block as the report has it; the first of each list is the dense model."""

    name: str
    channel_count: int  # 0 of a block
    layer_count: int  # that put them out together
    shares: tuple[float, ...]
    accuracies: tuple[float, ...]
    low: tuple[float, ...]
    high: tuple[float, ...]
    planned_share: float

    @property
    def accuracy_at_plan(self) -> float | None:
        """Accuracy where the plan cuts; None where it does not, or takes all because the block around it goes."""
        return (
            dict(zip(self.shares, self.accuracies, strict=True)).get(self.planned_share) if self.planned_share else None
        )


def read_curves(report: RunReport, kind: Literal["channels", "block"]) -> list[PlottedCurve]:
    """What was measured, the most sensitive first; points without all of their figures are left out."""
    found = []
    for one in report.get("sensitivity") or ():
        points = _points(one)
        if one.get("kind") == kind and len(points) > 1:
            shares, accuracies, low, high = zip(*points, strict=True)
            size = one.get("channels") or 0, len(one.get("layers") or ())
            found.append(PlottedCurve(one["name"], *size, shares, accuracies, low, high, one.get("cut") or 0.0))
    return found


def _points(one: Mapping[str, Any]) -> list[tuple[float, ...]]:
    rows = zip(*(one.get(key) or () for key in ("shares", "accuracies", "low", "high")), strict=False)
    return [row for row in rows if not any(map(number_format.is_missing, row))]


def tabulate(report: RunReport, *, short: bool = False) -> Table:
    """Every group and block, the most sensitive first; the short one has the most and the least sensitive alone."""
    found = list(report.get("sensitivity") or ())
    if short:
        found = [one for one in found if len(_points(one)) > 1]
        found = (
            [*found[:ROWS_AT_EACH_END], {}, *found[-ROWS_AT_EACH_END:]]
            if len(found) > 2 * ROWS_AT_EACH_END + 1
            else found
        )
    shares = (*TABULATED_SHARES, 1.0) if any(one.get("kind") == "block" for one in found) else TABULATED_SHARES
    rows = tuple(_row(one, shares, short=short) if one else ("…", *[""] * (len(shares) + 3)) for one in found)
    heads = (f"At {number_format.whole_percent(share)} cut" if share < 1 else "Without it" for share in shares)
    columns = ("Group or block", "Channels", *heads, "Plan takes", "By that alone")
    return Table(columns=columns, rows=rows, optional_columns=(1, 2, 4, len(columns) - 1))


def _row(one: Mapping[str, Any], shares: Sequence[float], *, short: bool) -> tuple[str, ...]:
    points, cut = _points(one)[1:], one.get("cut")
    drops = dict(zip(one.get("shares") or (), one.get("drops") or (), strict=False))
    reached = [_near(points, share) for share in shares]
    if not points:
        reached[0] = REASON_TEXT.get(str(one.get("why")), number_format.MISSING)
    drop = drops.get(cut) if cut else None
    lost = number_format.points(-drop["estimate"]) if short and drop else number_format.accuracy_change(drop)
    kind = "block" if one.get("kind") == "block" else str(one.get("channels") or number_format.MISSING)
    return (
        number_format.shorten_name(one["name"]) if short else one["name"],
        kind,
        *reached,
        number_format.whole_percent(cut) if cut else "nothing",
        lost,
    )


def _near(points: Sequence[tuple[float, ...]], wanted: float) -> str:
    """Accuracy at the share nearest to the one wanted, which is said where it is another."""
    share, accuracy = min(((p[0], p[1]) for p in points), key=lambda p: abs(p[0] - wanted), default=(math.inf, 0.0))
    if abs(share - wanted) >= MAX_SHARE_DISTANCE:
        return number_format.MISSING
    text = number_format.percent(accuracy)
    return text if abs(share - wanted) < EQUAL_SHARE_DISTANCE else f"{text} at {number_format.whole_percent(share)}"


def make_caption(report: RunReport, shown: int) -> str:
    """What the plot shows, on how many images, how sure, and what is not in it."""
    found = report.get("sensitivity") or ()
    known = read_curves(report, "channels")
    if not known:
        return ""
    images = next((one.get("images") for one in found), None)
    reach = max(high - low for curve in known for low, high in zip(curve.low, curve.high, strict=True)) / 2
    late = sum(one.get("why") == "no time" for one in found)
    rest = f" The other {len(known) - shown} are in the table." if len(known) > shown else ""
    left = f" Time was up before {late} more could be measured." if late else ""
    return (
        f"Each group of channels cut alone, without any training afterwards, on {images} validation images: a curve that "
        "falls early is a layer that the network can least do without. The most sensitive come first. Dashed: nothing "
        f"cut. Band: 95 % interval, at most ± {100 * reach:.1f} points.{_dots(known)}{rest}{left}"
    )


def _dots(known: Sequence[PlottedCurve]) -> str:
    return (
        " Orange dot: what the plan really cuts, which training then makes up for."
        if any(c.planned_share for c in known)
        else ""
    )
