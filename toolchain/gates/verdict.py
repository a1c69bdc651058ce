"""The verdict of one check: its outcome, the measured value, the limit and the reason."""

from dataclasses import dataclass
from typing import Literal

Outcome = Literal["pass", "fail", "cannot_tell", "not_measured"]


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
