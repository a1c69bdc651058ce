"""Check one variant against the budgets of recipe and target: accuracy drops, speed-up, latency and size.

A budget whose 95 % interval crosses the limit cannot be decided; only one that keeps it with its whole interval passes.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace

from toolchain.config import budget_limits
from toolchain.config.recipe import Budget
from toolchain.core import statistics
from toolchain.core.run_report import BASELINE
from toolchain.core.types import Interval
from toolchain.export.export_variants import Variant
from toolchain.gates.verdict import Outcome, Verdict, judge_interval
from toolchain.measure.accuracy import VariantAccuracy
from toolchain.measure.latency import LatencyMeasurement

# sign, factor, unit and format of a check; all other checks are shares
RATIO_FORMATS = {"speedup": (-1, 1, "x", ".3f"), "latency": (1, 1, "x", ".3f")}
HIGHER_IS_BETTER = ("speedup",)
CHECKS = ("accuracy_drop", "balanced_drop", "speedup", "latency", "size_bytes", "size")


@dataclass(frozen=True, kw_only=True)
class Limits:
    """The budgets of a run, with those resolved that are shares of a dense variant."""

    budget: Budget
    latency_share: float | None = None  # highest latency, as a share of `latency_baseline`'s; None: no such budget
    latency_baseline: str = ""  # the dense variant; "" where it cannot run on this machine
    size_bytes: float | None = None  # `budget.size`, resolved


def judge(
    variant: Variant, quality: VariantAccuracy, measured: Mapping[str, LatencyMeasurement], limits: Limits
) -> list[Verdict]:
    """Return a verdict on every budget.

    Args:
        variant: what is judged.
        quality: its quality on one split.
        measured: latency by variant; empty where nothing was timed.
        limits: the budgets.
    """
    verdicts = []
    drops = (("accuracy_drop", quality.drop), ("balanced_drop", quality.balanced_drop))
    for check, drop in drops:
        limit = getattr(limits.budget, check)
        if limit is not None:
            verdicts.append(_judge_drop(check, drop, limit, quality.disagreement))
    if limits.budget.speedup is not None:
        verdicts.append(_judge_speedup(variant, measured, limits.budget.speedup))
    if limits.latency_share is not None:
        verdicts.append(_judge_latency(variant, measured, limits))
    size = float(variant.artefact.size_bytes)
    for check, allowed in (("size_bytes", limits.budget.size_bytes), ("size", limits.size_bytes)):
        if allowed is not None:
            outcome: Outcome = "pass" if size <= allowed else "fail"
            verdicts.append(
                Verdict(check=check, outcome=outcome, measured=size, limit=float(allowed), why="bytes of model files")
            )
    return verdicts


def misses_budget(verdict: Verdict) -> bool:
    """Whether a budget's estimate is beyond its limit, whatever its interval: what a choice on validation goes by.

    Never true of a check that is no budget, nor of a budget that cannot be measured here.
    """
    if verdict.check not in CHECKS or verdict.measured is None or verdict.limit is None:
        return False
    if verdict.check in HIGHER_IS_BETTER:
        return verdict.measured < verdict.limit
    if verdict.check == "accuracy_drop" and verdict.samples:  # images are whole: 3 % of 60 are 2
        return round(verdict.measured * verdict.samples) > math.ceil(verdict.limit * verdict.samples)
    return verdict.measured > verdict.limit


def speedup_over(measured: Mapping[str, LatencyMeasurement], name: str, baseline: str) -> Interval:
    """Return the speed-up of `name` over `baseline` from paired rounds; NaN where nothing was timed."""
    if not measured:
        return Interval(estimate=math.nan, low=math.nan, high=math.nan, samples=0)
    if name == baseline:
        return Interval(estimate=1.0, low=1.0, high=1.0, samples=0)
    return statistics.speedup(measured[name].round_logs[baseline])


def resolve_size(budget: Budget, dense: Variant) -> float | None:
    """Return the bytes that `budget.size` allows, of which a share is one of the dense variant; None without that budget."""
    size = float(dense.artefact.size_bytes)
    return budget_limits.parse("size", budget.size).as_share_of(size) * size if budget.size is not None else None


def describe_power(limit: float, images: int, disagreement: float) -> str:
    """Return a note on an accuracy budget finer than this many images can detect; empty where they can.

    Args:
        limit: the budget, a share.
        images: number of test images.
        disagreement: share of images that exactly one of two models classifies correctly.
    """
    detectable = statistics.minimum_detectable_difference(images, disagreement)
    if not 0 < limit < detectable:
        return ""
    return (
        f"; {images} test images cannot show a drop of {100 * limit:.2g} points, only {100 * detectable:.1f} or more; "
        f"about {statistics.images_needed(limit, disagreement):,} images would decide"
    )


def _judge_drop(check: str, drop: Interval, limit: float, disagreement: float) -> Verdict:
    verdict = _below(check, drop, limit)
    if check != "accuracy_drop":
        return verdict
    needed = statistics.images_needed(limit, disagreement) if limit > 0 else None
    undecided = verdict.outcome == "cannot_tell" and needed is not None and needed > drop.samples
    why = verdict.why + (describe_power(limit, drop.samples, disagreement) if undecided else "")
    return replace(verdict, why=why, images_needed=needed if undecided else None)


def _judge_speedup(variant: Variant, measured: Mapping[str, LatencyMeasurement], limit: float) -> Verdict:
    if not measured:
        return _unmeasured("speedup", limit, "latency was not measured on this machine")
    speed = speedup_over(measured, variant.name, BASELINE)
    slower = Interval(estimate=-speed.estimate, low=-speed.high, high=-speed.low, samples=speed.samples)
    return _below("speedup", slower, -limit)


def _judge_latency(variant: Variant, measured: Mapping[str, LatencyMeasurement], limits: Limits) -> Verdict:
    assert limits.latency_share is not None
    if not (measured and limits.latency_baseline):
        missing = "the precision that the dense model would ship in" if measured else "latency"
        return _unmeasured("latency", limits.latency_share, f"{missing} was not measured on this machine")
    speed = speedup_over(measured, variant.name, limits.latency_baseline)
    share = Interval(estimate=1 / speed.estimate, low=1 / speed.high, high=1 / speed.low, samples=speed.samples)
    verdict = _below("latency", share, limits.latency_share)
    return replace(verdict, why=f"of {limits.latency_baseline}, as it would ship unpruned; {verdict.why}")


def _below(check: str, value: Interval, limit: float) -> Verdict:
    """Judge an estimate by its whole interval."""
    outcome = judge_interval(value, limit)
    sign, factor, unit, form = RATIO_FORMATS.get(check, (1, 100, " points", "+.2f"))
    low, high = sorted((sign * factor * value.low, sign * factor * value.high))
    crossing = ", which crosses the limit" if outcome == "cannot_tell" else ""
    why = f"95 % interval {low:{form}} to {high:{form}}{unit}{crossing}, {value.samples} samples"
    return Verdict(
        check=check, outcome=outcome, measured=sign * value.estimate, limit=sign * limit, why=why, samples=value.samples
    )


def _unmeasured(check: str, limit: float, why: str) -> Verdict:
    return Verdict(check=check, outcome="not_measured", measured=None, limit=limit, why=why)
