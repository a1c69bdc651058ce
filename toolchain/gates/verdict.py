"""The verdict of one check: its outcome, the measured value, the limit and the reason."""

from dataclasses import dataclass
from typing import Literal

from toolchain.core.types import Interval

Outcome = Literal["pass", "fail", "cannot_tell", "not_measured"]


def judge_interval(value: Interval, limit: float) -> Outcome:
    """Return `pass` where the whole interval is within an upper limit, `fail` where it is beyond, else `cannot_tell`."""
    if value.high <= limit:
        return "pass"
    return "fail" if value.low > limit else "cannot_tell"


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """The result of one check.

    `measured` and `limit` are in the check's own unit: shares, bytes or ratios. `measured` is None where nothing was measured.
    """

    check: str
    outcome: Outcome
    measured: float | None
    limit: float | None
    why: str
    samples: int | None = None  # images or rounds; None where nothing was sampled
    images_needed: int | None = None  # images that would decide the check; None where this many do
