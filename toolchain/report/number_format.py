"""How numbers are written: one way for the terminal, Markdown and HTML alike, and an en dash where there is none.

Three significant digits where the magnitude matters, one decimal for accuracies. A difference carries its sign, an
estimate its interval. Prefixes are powers of 1000.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

MISSING = "–"
MINUS = "−"
OptionalNumber = float | int | None


def is_missing(value: Any) -> bool:
    """Return whether there is no number to write: it is absent or not finite."""
    return value is None or (isinstance(value, float) and not math.isfinite(value))


def significant(value: OptionalNumber, digits: int = 3) -> str:
    """Write a number with so many significant digits, never with an exponent: 1.98, 12.3, 1230."""
    if value is None or is_missing(value):
        return MISSING
    rounded = float(f"{value:.{digits}g}")
    magnitude = math.floor(math.log10(abs(rounded))) if rounded else 0
    return f"{rounded:.{max(0, digits - 1 - magnitude)}f}".replace("-", MINUS)


def scaled(value: OptionalNumber, units: tuple[str, ...]) -> str:
    """Write a number in the largest of `units`, each 1000 times the one before, that leaves at least 1 before the point."""
    if value is None or is_missing(value):
        return MISSING
    amount, step = float(value), 0
    while step < len(units) - 1 and abs(float(f"{amount:.3g}")) >= 1000:
        amount, step = amount / 1000, step + 1
    text = str(round(amount)) if step == 0 else significant(amount)
    return f"{text} {units[step]}".rstrip()


def byte_size(value: OptionalNumber) -> str:
    """Write bytes: 612 kB, 4.47 MB."""
    return scaled(value, ("B", "kB", "MB", "GB"))


def image_size(size: Sequence[int] | None) -> str:
    """Write the height and width of images: 120×72."""
    return "×".join(map(str, size)) if size else MISSING


def count(value: OptionalNumber) -> str:
    """Write a number of multiply-accumulates or parameters: 40.6 M."""
    return scaled(value, ("", "k", "M", "G"))


def steps(value: OptionalNumber) -> str:
    """Write a difference in quantization steps: 1.00; `< 0.01` for one that float rounding alone explains."""
    return "< 0.01" if value is not None and 0 < value < 0.01 else significant(value)


def milliseconds(value: OptionalNumber) -> str:
    """Write milliseconds: 1.98 ms."""
    return MISSING if is_missing(value) else f"{significant(value)} ms"


def multiple(value: OptionalNumber) -> str:
    """Write a factor: 1.62×."""
    return MISSING if value is None or is_missing(value) else f"{value:.2f}×"


def percent(value: OptionalNumber) -> str:
    """Write a share as 83.6 %. Only 1 is written as 100 %: a share that would round to it is cut off at 99.99 %."""
    if value is None or is_missing(value):
        return MISSING
    if 0.9995 <= value < 1:
        return f"{math.floor(10_000 * value) / 100:.2f} %"
    return f"{100 * value:.1f} %" if value < 1 else f"{100 * value:.0f} %"


def whole_percent(value: OptionalNumber) -> str:
    """Write a share in whole per cent: 67 %."""
    return MISSING if value is None or is_missing(value) else f"{round(100 * value)} %"


def shorten_name(name: str, most: int = 26) -> str:
    """Cut a layer's name from the front, because its end says more, to at most `most` characters."""
    return name if len(name) <= most else "…" + name[1 - most :]


def points(value: OptionalNumber) -> str:
    """Write a difference of two shares in points: +0.4 pt, −0.4 pt; zero has no sign."""
    return MISSING if is_missing(value) else f"{_signed(value)} pt"


def _signed(value: OptionalNumber) -> str:
    rounded = round(100 * (value or 0.0), 1)
    return f"{rounded:+.1f}".replace("-", MINUS) if rounded else "0.0"


def drop_points(value: OptionalNumber) -> str:
    """Write an accuracy drop in points: a loss has no sign, a gain is negative."""
    return MISSING if value is None or is_missing(value) else _signed(value).replace("+", "") + " pt"


def interval(low: OptionalNumber, high: OptionalNumber, write: Callable[[OptionalNumber], str]) -> str:
    """Write ` [82.4, 84.8]` with the space before it, in the unit of `write`; "" where a bound is missing."""
    if is_missing(low) or is_missing(high):
        return ""
    bare = (text.split(" ")[0].removesuffix("×") for text in (write(low), write(high)))
    return f" [{', '.join(bare)}]"


def accuracy(variant: Mapping[str, Any], prefix: str = "") -> str:
    """Write a variant's accuracy: 83.6 % [82.4, 84.8]; `prefix` is `balanced_` for the balanced accuracy."""
    value = variant.get("balanced_accuracy" if prefix else "accuracy")
    low, high = (variant.get(f"{prefix or 'accuracy_'}{side}") for side in ("low", "high"))
    return MISSING if is_missing(value) else percent(value) + interval(low, high, percent_bound)


def percent_bound(value: OptionalNumber) -> str:
    """Write a bound of an interval in per cent without the unit: one decimal, whatever the value."""
    return MISSING if value is None else f"{100 * value:.1f}"


def speedup(ratio: Mapping[str, Any] | None) -> str:
    """Write a speed-up with its interval: 1.62× [1.58, 1.66]."""
    if not ratio or is_missing(ratio.get("estimate")):
        return MISSING
    return multiple(ratio["estimate"]) + interval(ratio.get("low"), ratio.get("high"), multiple)


def accuracy_change(drop: Mapping[str, Any] | None) -> str:
    """Write an accuracy drop as a change, so that a loss is negative: −0.4 pt [−1.0, +0.2]."""
    if not drop or is_missing(drop.get("estimate")):
        return MISSING
    low, high = drop.get("high"), drop.get("low")  # the change is minus the drop, which swaps the bounds
    change = [None if v is None or is_missing(v) else -v for v in (drop["estimate"], low, high)]
    return points(change[0]) + interval(change[1], change[2], points)


def accuracy_gain(gain: Mapping[str, Any]) -> str:
    """Write a gain in accuracy: +0.4 pt [−0.2, +1.0]."""
    return points(gain.get("estimate")) + interval(gain.get("low"), gain.get("high"), points)


def median_latency(latency: Mapping[str, Any] | None) -> str:
    """Write the median latency with its interval: 1.98 ms [1.95, 2.02]."""
    if not latency or is_missing(latency.get("p50")):
        return MISSING
    return milliseconds(latency["p50"]) + interval(latency.get("low"), latency.get("high"), significant)


def duration(seconds: OptionalNumber) -> str:
    """Write a duration: 0.4 s, 42 s, 3 min 12 s, 1 h 05 min."""
    if seconds is None or is_missing(seconds):
        return MISSING
    if seconds < 10:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    return f"{whole // 60} min {whole % 60:02} s" if whole < 3600 else f"{whole // 3600} h {whole % 3600 // 60:02} min"


def with_interval(value: Mapping[str, float] | None, factor: float = 1.0) -> str:
    """Write an estimate with its interval, three digits each, all times `factor`: 0.132 [0.131, 0.133]."""
    if value is None:
        return MISSING
    middle, low, high = (f"{factor * value[key]:.3g}" for key in ("estimate", "low", "high"))
    return f"{middle} [{low}, {high}]"


def relative_change(value: OptionalNumber) -> str:
    """Write a relative change with its sign: 0.031 as +3.1 %."""
    return MISSING if is_missing(value) else f"{_signed(value)} %"


FORMAT_BY_CHECK: tuple[tuple[str, Callable[[OptionalNumber], str], str], ...] = (
    ("growth", relative_change, "≤"),
    ("drop", drop_points, "≤"),
    ("gap", points, "≥"),
    ("error", lambda value: f"{steps(value)} steps", "≤"),
    ("changes", percent, "≤"),
    ("speedup", multiple, "≥"),
    ("size", byte_size, "≤"),
    ("bytes", byte_size, "≤"),
    ("agreement", percent, "≥"),
    ("accuracy", percent, "≥"),
    ("coverage", percent, "≥"),
    ("share", percent, ""),
    ("_ms", milliseconds, "≤"),
    ("latency", multiple, "≤"),
    ("steps", steps, "≤"),
)


def verdict_value(check: str, value: OptionalNumber, *, limit: bool = False) -> str:
    """Write a verdict's figure in the unit that the name of its check implies; a limit with the side to be on: ≤ 1.0 pt."""
    if is_missing(value):
        return MISSING
    for word, write, sign in FORMAT_BY_CHECK:
        if word in check:
            if word == "gap" and limit and value is not None and value > 0:
                sign = "±"  # reports of schema 1 limited the gap on both sides
            return f"{sign} {write(value).lstrip('+')}".lstrip() if limit else write(value)
    return significant(value, 4)
