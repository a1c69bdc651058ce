"""Whether a candidate is slower than the reference: decisions from paired rounds, without a clock or a file.

Rounds are the samples, because inferences of one process are not independent. A round's value is the logarithm of how
many times longer the candidate takes. Three answers are possible; "cannot tell" is one of them, because a gate that
must decide on a machine that cannot decide cries wolf. At least as slow as the threshold is what a regression is; half
of it, seen with certainty, is called one too, so that one of exactly the threshold is not missed.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from toolchain.core import statistics
from toolchain.core.types import Interval
from toolchain.gates.verdict import Outcome

Decision = Literal["pass", "regression", "undecided"]
FIRST_ROUNDS, ADDED_ROUNDS, MAX_ROUNDS = 10, 5, 20  # rounds: to begin with, more at a time while undecided, in all
CONFIRMING_ROUNDS = 10  # further rounds before a regression is called one
ERROR_LEVEL = 0.005  # of each of the two errors, at most
LOOKS = 1 + (MAX_ROUNDS - FIRST_ROUNDS) // ADDED_ROUNDS  # how often rounds are read; each may pass by chance
POWER = 0.99  # of finding the smallest slowdown that is named


@dataclass(frozen=True)
class Sample:
    """What a round came to: logarithms of how many times longer than the reference a side took."""

    candidate: float
    control: float  # the reference once more


@dataclass(frozen=True, kw_only=True)
class SlowdownEstimate:
    """What a series of rounds says."""

    slower: Interval  # how many times longer
    detectable: float  # smallest slowdown that as many rounds with this noise would call a regression; a fraction
    rounds: int


@dataclass(frozen=True, kw_only=True)
class LatencyTest:
    """A gate's rounds and its answer."""

    outcome: Outcome
    why: str
    candidate: SlowdownEstimate  # in all rounds
    control: SlowdownEstimate  # in all rounds
    p_value: float  # of the rounds that decided


def run_test(draw: Callable[[int], Sequence[Sample]], threshold: float) -> LatencyTest:
    """Asks for rounds until they decide, and for further ones before a regression is called one.

    Args:
        draw: measures so many more rounds.
        threshold: of a regression; 0.05 = 5 % slower.
    """
    first = list(draw(FIRST_ROUNDS))
    while (decision := decide(_candidates(first), threshold)) == "undecided" and len(first) < MAX_ROUNDS:
        first += draw(ADDED_ROUNDS)
    reason = why_unfit(_controls(first), threshold)
    again = list(draw(CONFIRMING_ROUNDS)) if decision == "regression" and not reason else []
    if again:
        reason = why_unfit(_controls(again), threshold)
    outcome: Outcome = "cannot_tell"
    if reason:
        why = reason
    elif decision == "undecided":
        why = f"undecided after {len(first)} rounds"
    elif decision == "pass":
        outcome, why = "pass", ""
    elif is_confirmed(_candidates(first), _candidates(again), threshold):
        outcome, why = (
            "fail",
            f"slower by more than half the threshold, not by chance, confirmed by {len(again)} rounds",
        )
    else:
        why = f"seen in {len(first)} rounds, not in {len(again)} further ones"
    every = [*first, *again]
    return LatencyTest(
        outcome=outcome, why=why, candidate=estimate_slowdown(_candidates(every), threshold), control=estimate_slowdown(_controls(every), threshold),
        p_value=statistics.trimmed_mean(_candidates(first)).p_greater(0.0),
    )  # fmt: skip


def _controls(samples: Sequence[Sample]) -> list[float]:
    return [one.control for one in samples]


def _candidates(samples: Sequence[Sample]) -> list[float]:
    return [one.candidate for one in samples]


def estimate_slowdown(logs: Sequence[float], threshold: float) -> SlowdownEstimate:
    """Reads round values; at least three."""
    middle = statistics.trimmed_mean(logs)
    seen = max(middle.detectable_difference(ERROR_LEVEL, POWER), math.log1p(threshold / 2) + middle.margin(POWER))
    return SlowdownEstimate(slower=statistics.speedup(logs), detectable=math.expm1(seen), rounds=len(logs))


def decide(logs: Sequence[float], threshold: float) -> Decision:
    """Regression: slower by more than half the threshold, and not by chance. Pass: certainly below the threshold."""
    middle = statistics.trimmed_mean(logs)
    if math.exp(middle.estimate) > 1 + threshold / 2 and middle.p_greater(0.0) < ERROR_LEVEL:
        return "regression"
    return "pass" if math.exp(middle.upper_bound(1 - ERROR_LEVEL / LOOKS)) < 1 + threshold else "undecided"


def is_confirmed(first: Sequence[float], again: Sequence[float], threshold: float) -> bool:
    """Whether rounds of their own say so too, and all together still are above half the threshold."""
    both = statistics.trimmed_mean([*first, *again]).estimate
    return statistics.trimmed_mean(again).p_greater(0.0) < ERROR_LEVEL and math.exp(both) > 1 + threshold / 2


def why_unfit(control: Sequence[float], threshold: float) -> str:
    """Why a machine cannot compare, from rounds of the reference against itself; empty where it can."""
    middle, read = statistics.trimmed_mean(control), estimate_slowdown(control, threshold)
    if abs(math.expm1(middle.estimate)) > threshold / 2 and middle.p_two_sided(0.0) < ERROR_LEVEL:
        return (
            f"the reference against itself came out {math.expm1(middle.estimate):+.1%}: this machine favours one of two "
            "equal models"
        )
    if read.detectable > 2 * threshold:
        return f"the reference against itself varies so much that {read.detectable:.0%} is the least that could be seen"
    return ""
