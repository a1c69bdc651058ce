"""Verdict: carried out of a larger module; to be described."""

from dataclasses import dataclass
from typing import Literal

Outcome = Literal["pass", "fail", "cannot_tell", "not_measured"]


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """One question answered."""

    check: str
    outcome: Outcome
    measured: float | None
    limit: float | None
    why: str
