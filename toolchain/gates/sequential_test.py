"""Sequential test for a slowdown: decide from paired rounds whether a candidate is slower than the baseline.

Nothing is timed or read here. Rounds are the samples, because inferences of one process are not independent. A round's
value is the logarithm of candidate latency over baseline latency. "Cannot tell" is one of three outcomes, because a gate
that has to decide on a noisy machine raises false alarms. A slowdown of the threshold is a regression; a certain slowdown
of more than half the threshold counts as one too, so that one of exactly the threshold is not missed.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from toolchain.core import statistics
from toolchain.core.types import Interval
from toolchain.gates.verdict import Outcome

Decision = Literal["pass", "regression", "undecided"]
FIRST_ROUNDS, ADDED_ROUNDS, MAX_ROUNDS = 10, 5, 20  # first look, added at a time while undecided, at most
CONFIRMING_ROUNDS = 10  # further rounds that have to confirm a regression
ERROR_LEVEL = 0.005  # highest rate of false alarms, and of missed regressions
LOOKS = (
    1 + (MAX_ROUNDS - FIRST_ROUNDS) // ADDED_ROUNDS
)  # how often the rounds are looked at; each look may pass by chance
POWER = 0.99  # of detecting the smallest slowdown that is reported as detectable


@dataclass(frozen=True)
class Sample:
    """One round: logarithm of latency over the baseline's latency, for the candidate and for the baseline itself (control)."""

    candidate: float
    control: float


@dataclass(frozen=True, kw_only=True)
class SlowdownEstimate:
    """The slowdown estimated from a series of rounds."""

    slower: Interval  # latency over the baseline's latency
    detectable: float  # smallest slowdown that this many rounds with this noise would detect, a fraction
    rounds: int


@dataclass(frozen=True, kw_only=True)
class LatencyTest:
    """Outcome of the test, with the estimates from all rounds."""

    outcome: Outcome
    why: str
    candidate: SlowdownEstimate
    control: SlowdownEstimate
    p_value: float  # one-sided, of the rounds that decided


def run_test(draw: Callable[[int], Sequence[Sample]], threshold: float) -> LatencyTest:
    """Draw rounds until they decide, and further ones to confirm a regression.

    Args:
        draw: measures the given number of further rounds.
        threshold: slowdown that is a regression; 0.05 = 5 % slower.
    """
    first = list(draw(FIRST_ROUNDS))
    while (decision := decide(_candidates(first), threshold)) == "undecided" and len(first) < MAX_ROUNDS:
        first += draw(ADDED_ROUNDS)
    reason = why_unfit(_controls(first), threshold)
    confirming = list(draw(CONFIRMING_ROUNDS)) if decision == "regression" and not reason else []
    if confirming:
        reason = why_unfit(_controls(confirming), threshold)
    outcome: Outcome = "cannot_tell"
    if reason:
        why = reason
    elif decision == "undecided":
        why = f"undecided after {len(first)} rounds"
    elif decision == "pass":
        outcome, why = "pass", ""
    elif is_confirmed(_candidates(first), _candidates(confirming), threshold):
        outcome, why = (
            "fail",
            f"slower by more than half the threshold, not by chance, confirmed by {len(confirming)} rounds",
        )
    else:
        why = f"slower in {len(first)} rounds, but {len(confirming)} further ones do not confirm it"
    rounds = [*first, *confirming]
    return LatencyTest(
        outcome=outcome, why=why, candidate=estimate_slowdown(_candidates(rounds), threshold),
        control=estimate_slowdown(_controls(rounds), threshold),
        p_value=statistics.trimmed_mean(_candidates(first)).p_greater(0.0),
    )  # fmt: skip


def _controls(samples: Sequence[Sample]) -> list[float]:
    return [sample.control for sample in samples]


def _candidates(samples: Sequence[Sample]) -> list[float]:
    return [sample.candidate for sample in samples]


def estimate_slowdown(logs: Sequence[float], threshold: float) -> SlowdownEstimate:
    """Estimate the slowdown and the smallest detectable one from at least three round values."""
    mean = statistics.trimmed_mean(logs)
    detectable = max(mean.detectable_difference(ERROR_LEVEL, POWER), math.log1p(threshold / 2) + mean.margin(POWER))
    return SlowdownEstimate(slower=statistics.speedup(logs), detectable=math.expm1(detectable), rounds=len(logs))


def decide(logs: Sequence[float], threshold: float) -> Decision:
    """Return "regression" for a significant slowdown above half the threshold, "pass" for one certainly below the threshold."""
    mean = statistics.trimmed_mean(logs)
    if math.exp(mean.estimate) > 1 + threshold / 2 and mean.p_greater(0.0) < ERROR_LEVEL:
        return "regression"
    return "pass" if math.exp(mean.upper_bound(1 - ERROR_LEVEL / LOOKS)) < 1 + threshold else "undecided"


def is_confirmed(first: Sequence[float], confirming: Sequence[float], threshold: float) -> bool:
    """Whether the confirming rounds are significantly slower by themselves and all rounds stay above half the threshold."""
    together = statistics.trimmed_mean([*first, *confirming]).estimate
    return statistics.trimmed_mean(confirming).p_greater(0.0) < ERROR_LEVEL and math.exp(together) > 1 + threshold / 2


def why_unfit(control: Sequence[float], threshold: float) -> str:
    """Return why this machine cannot compare two models, from rounds of the baseline against itself; empty where it can."""
    mean, slowdown = statistics.trimmed_mean(control), estimate_slowdown(control, threshold)
    if abs(math.expm1(mean.estimate)) > threshold / 2 and mean.p_two_sided(0.0) < ERROR_LEVEL:
        return f"the baseline against itself differs by {math.expm1(mean.estimate):+.1%}, so this machine cannot compare two models"
    if slowdown.detectable > 2 * threshold:
        return f"the machine is too noisy: the smallest slowdown that can be detected is {slowdown.detectable:.0%}"
    return ""
