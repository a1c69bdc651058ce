"""Decide what ships: a verdict for every budget and every check that holds for all artefacts.

The fastest compressed variant that passes every check on validation becomes the candidate; a float variant may win. It
ships if it passes on the test split too.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from toolchain.config import budget_limits
from toolchain.config.job import Job
from toolchain.config.recipe import Budget
from toolchain.core import statistics
from toolchain.core.run_report import BASELINE
from toolchain.core.types import Interval, Precision
from toolchain.export.export_variants import Variant
from toolchain.gates.verdict import Verdict
from toolchain.measure.accuracy import Parity, VariantAccuracy, Verification
from toolchain.measure.latency import LatencyMeasurement
from toolchain.search.latency_search import LatencyFit
from toolchain.search.pruning_plan import PruningPlan

# sign, factor, unit and format of a check; all other checks are shares
RATIO_FORMATS = {"speedup": (-1, 1, "x", ".3f"), "latency": (1, 1, "x", ".3f")}
# agreement of artefact and torch model; also at most the slack below the runtime's agreement with its own float graph
MIN_TOP1_AGREEMENT = 0.985
TOP1_AGREEMENT_SLACK = 0.003
# rounding to 8 bits of mantissa changes the model as quantization does: predictions near the decision boundary flip both
# ways (2 % on a noisy real dataset, so 0.4 points on 2,000 images by chance alone); the budgets bound what that costs
BF16_MIN_TOP1_AGREEMENT = 0.96
BF16_MAX_ACCURACY_GAP = 0.01
MAX_ACCURACY_GAP = 0.003  # between artefact and torch model
TOLERATED_IMAGES = 2  # this many images may differ, whatever their share of a small test split


@dataclass(frozen=True)
class ShipDecision:
    """What ships, with the verdicts on the candidate."""

    shipped: str | None
    candidate: str  # the variant that the verdicts are about
    unpruned: str  # the dense variant that would ship without pruning
    verdicts: tuple[Verdict, ...]
    notes: tuple[str, ...]


@dataclass(frozen=True)
class LatencyLimit:
    """A latency budget, as a share of a dense variant's latency."""

    share: float
    reference: str  # name of that variant; "" where it cannot run on this machine


def run(
    job: Job,
    variants: Sequence[Variant],
    verified: Verification,
    measured: Mapping[str, LatencyMeasurement],
    plan: PruningPlan,
) -> ShipDecision:
    """Decide what ships and give a verdict on every budget; if the plan comes from a lock, the lock names the precision."""
    pinned = plan.lock.ships if plan.lock else None
    return decide(
        variants, verified.validation, verified.test, measured, job.budget, plan.latency_fit, plan.dense_precision, pinned
    )  # fmt: skip


def decide(
    variants: Sequence[Variant], validation: Mapping[str, VariantAccuracy], test: Mapping[str, VariantAccuracy],
    measured: Mapping[str, LatencyMeasurement], budget: Budget, fitted: LatencyFit | None = None, dense: Precision | None = None,
    ships: Precision | None = None,
) -> ShipDecision:  # fmt: skip
    """Choose the candidate on validation, and judge it on the test split, which no choice has seen.

    Args:
        variants: all variants; dense-fp32, the baseline of every comparison, is among them.
        validation: quality on the validation split, which chooses the candidate.
        test: quality on the test split, which gives the verdicts.
        measured: latency by variant; empty where nothing was timed.
        budget: of recipe and target.
        fitted: how untrained models met the latency budget; the trained model is held to the same limit.
        dense: the precision that the dense model would ship in, of which budgets are shares; None: the best one here.
        ships: the precision that a lock names; None: the fastest variant that passes every check.
    """
    baseline, unpruned = BASELINE, _choose_unpruned(variants, validation, measured, budget)
    precision = dense or (fitted.dense if fitted else None)
    shipping = next((v for v in variants if v.network == "dense" and v.precision == precision), None)
    limit = LatencyLimit(fitted.limit, shipping.name if shipping else "") if fitted else None
    max_bytes = _size_limit(budget, shipping or next(v for v in variants if v.name == unpruned))
    network = "pruned" if any(v.network == "pruned" for v in variants) else "dense"
    eligible = [v for v in variants if v.network == network]
    pinned = [v for v in eligible if v.precision == ships]
    ranked = sorted(pinned or eligible, key=lambda v: _rank(v, measured, baseline))
    on_validation = {v.name: give_verdicts(v, baseline, validation, measured, budget, limit, max_bytes) for v in ranked}
    passing = [v for v in ranked if not _failed(on_validation[v.name])]
    # where all fail, the most accurate one shows how far away the budget is
    best = passing[0] if passing else min(ranked, key=lambda v: validation[v.name].drop.estimate)
    verdicts = give_verdicts(best, baseline, test, measured, budget, limit, max_bytes)
    notes = [
        *_notes(best, ranked, on_validation, measured),
        *(["the lock names the precision that ships"] if pinned else []),
    ]
    if missed := _failed(verdicts):
        notes = [f"nothing ships: {best.name} misses {', '.join(missed)}", *notes]
    shipped = None if missed else best.name
    return ShipDecision(shipped, best.name, unpruned, tuple(verdicts), tuple(notes))


def _size_limit(budget: Budget, dense: Variant) -> float | None:
    """Return the bytes that `budget.size` allows; None without such a budget."""
    size = float(dense.artefact.size_bytes)
    return budget_limits.parse("size", budget.size).as_share_of(size) * size if budget.size is not None else None


def _rank(variant: Variant, measured: Mapping[str, LatencyMeasurement], baseline: str) -> float:
    """Return a key that sorts the fastest first; where nothing could be timed, the smallest, which there is the int8 one."""
    return -speedup_over(measured, variant.name, baseline).estimate if measured else float(variant.artefact.size_bytes)


def _failed(verdicts: Sequence[Verdict]) -> list[str]:
    return [verdict.check for verdict in verdicts if verdict.outcome == "fail"]


def speedup_over(measured: Mapping[str, LatencyMeasurement], name: str, baseline: str) -> Interval:
    """Return the speed-up of `name` over `baseline` from paired rounds; NaN where nothing was timed."""
    if not measured:
        return Interval(estimate=math.nan, low=math.nan, high=math.nan, samples=0)
    if name == baseline:
        return Interval(estimate=1.0, low=1.0, high=1.0, samples=0)
    return statistics.speedup(measured[name].round_logs[baseline])


def give_verdicts(
    variant: Variant,
    baseline: str,
    accuracy: Mapping[str, VariantAccuracy],
    measured: Mapping[str, LatencyMeasurement],
    budget: Budget,
    limit: LatencyLimit | None = None,
    max_bytes: float | None = None,
) -> list[Verdict]:
    """Return a verdict on every budget and every check of one variant.

    Args:
        variant: the variant.
        baseline: name of the variant that speed-up is measured against.
        accuracy: quality by variant, on one split.
        measured: latency by variant; empty where nothing was timed.
        budget: of recipe and target.
        limit: latency budget; None: none.
        max_bytes: largest model files, bytes; None: any.
    """
    quality = accuracy[variant.name]
    verdicts = []
    for check, drop, max_drop in (
        ("accuracy_drop", quality.drop, budget.accuracy_drop),
        ("balanced_drop", quality.balanced_drop, budget.balanced_drop),
    ):
        if max_drop is not None:
            verdict = _below(check, drop, max_drop)
            if check == "accuracy_drop":
                power = describe_power(max_drop, drop.samples, quality.disagreement)
                verdict = replace(verdict, why=verdict.why + power)
            verdicts.append(verdict)
    if budget.speedup is not None and not measured:
        verdicts.append(_unmeasured("speedup", budget.speedup, "latency was not measured on this machine"))
    elif budget.speedup is not None:
        speed = speedup_over(measured, variant.name, baseline)
        slower = Interval(estimate=-speed.estimate, low=-speed.high, high=-speed.low, samples=speed.samples)
        verdicts.append(_below("speedup", slower, -budget.speedup))
    if limit is not None and not (measured and limit.reference):
        why = "the precision that the dense model would ship in" if measured else "latency"
        verdicts.append(_unmeasured("latency", limit.share, f"{why} was not measured on this machine"))
    elif limit is not None:
        speed = speedup_over(measured, variant.name, limit.reference)
        share = Interval(estimate=1 / speed.estimate, low=1 / speed.high, high=1 / speed.low, samples=speed.samples)
        verdict = _below("latency", share, limit.share)
        verdicts.append(replace(verdict, why=f"of {limit.reference}, as it would ship unpruned; {verdict.why}"))
    size = float(variant.artefact.size_bytes)
    for check, allowed in (("size_bytes", budget.size_bytes), ("size", max_bytes)):
        if allowed is not None:
            verdicts.append(_exact(check, size, float(allowed), size <= allowed, "bytes of model files"))
    return [*verdicts, *_judge_artefact(variant, quality)]


def _below(check: str, value: Interval, limit: float) -> Verdict:
    """Judge an estimate by its point; say so where its interval crosses the limit."""
    passed = value.estimate <= limit
    crossing = value.low <= limit < value.high if passed else value.low <= limit
    sign, factor, unit, form = RATIO_FORMATS.get(check, (1, 100, " points", "+.2f"))
    low, high = sorted((sign * factor * value.low, sign * factor * value.high))
    why = f"95 % interval {low:{form}} to {high:{form}}{unit}, {value.samples} samples"
    why += "; it crosses the limit, so this is not certain" if crossing else ""
    return Verdict(
        check=check, outcome="pass" if passed else "fail", measured=sign * value.estimate, limit=sign * limit, why=why
    )


def describe_power(limit: float, images: int, disagreement: float) -> str:
    """Return a note on an accuracy budget finer than this many images can detect; empty where they can.

    Args:
        limit: the budget, a share.
        images: number of test images.
        disagreement: share of images that one of two models classifies correctly and the other does not.
    """
    detectable = statistics.minimum_detectable_difference(images, disagreement)
    if not 0 < limit < detectable:
        return ""
    needed = statistics.images_needed(limit, disagreement)
    return (
        f"; {images} test images cannot show a drop of {100 * limit:.2g} points, only {100 * detectable:.1f} or more; "
        f"that needs about {needed} images"
    )


def _unmeasured(check: str, limit: float, why: str) -> Verdict:
    return Verdict(check=check, outcome="not_measured", measured=None, limit=limit, why=why)


def _exact(check: str, measured: float, limit: float, passed: bool, why: str) -> Verdict:
    return Verdict(check=check, outcome="pass" if passed else "fail", measured=measured, limit=limit, why=why)


def _judge_artefact(variant: Variant, quality: VariantAccuracy) -> list[Verdict]:
    """Check what holds for every artefact, whatever the budget: it is the model that was trained, and it runs in int8."""
    parity = quality.parity
    floor = BF16_MIN_TOP1_AGREEMENT if variant.precision == "bf16" else MIN_TOP1_AGREEMENT
    why = f"artefact against torch model over {parity.images} images"
    if parity.runtime_agreement is not None:
        noise_floor = parity.runtime_agreement - TOP1_AGREEMENT_SLACK - _chance_margin(parity, parity.runtime_agreement)
        floor = max(floor, noise_floor)
        why += f"; the runtime agrees with its own unoptimized graph on {parity.runtime_agreement:.4f}"
    floor = min(floor, 1 - TOLERATED_IMAGES / parity.images)
    gap = BF16_MAX_ACCURACY_GAP if variant.precision == "bf16" else MAX_ACCURACY_GAP
    gap = max(gap, TOLERATED_IMAGES / parity.images)
    verdicts = [
        _exact("top1_agreement", parity.top1_agreement, floor, parity.top1_agreement >= floor - 1e-9, why),
        _exact(
            "accuracy_gap",
            parity.accuracy_gap,
            gap,
            abs(parity.accuracy_gap) <= gap + 1e-9,
            "artefact minus torch model",
        ),
    ]
    coverage = quality.coverage
    if variant.precision == "int8" and coverage is None:
        verdicts.append(_unmeasured("integer_coverage", 1.0, "this machine does not run the target's instructions"))
    elif variant.precision == "int8" and coverage is not None:
        names = f"; in float: {', '.join(coverage.float_ops)}" if coverage.float_ops else ""
        full = coverage.integer >= coverage.planned
        why = f"{coverage.integer} of {coverage.planned} planned layers run in int8, {coverage.total} in all{names}"
        share = coverage.integer / max(coverage.planned, 1)
        verdicts.append(_exact("integer_coverage", share, 1.0, full, why))
    return verdicts


def _chance_margin(parity: Parity, runtime_agreement: float) -> float:
    """Return 1.96 standard errors of the difference of two agreements over the same images."""
    changed = (1 - parity.top1_agreement) + (1 - runtime_agreement)
    return 1.96 * math.sqrt(changed / parity.images)


def _notes(
    best: Variant,
    ranked: Sequence[Variant],
    verdicts: Mapping[str, Sequence[Verdict]],
    measured: Mapping[str, LatencyMeasurement],
) -> list[str]:
    notes = []
    for other in ranked:
        if other is best or not _failed(verdicts[other.name]):
            break  # slower variants need no explanation
        missed = ", ".join(_failed(verdicts[other.name]))
        notes.append(f"{other.name} is faster than {best.name} but misses {missed} on validation")
    integer = next((v for v in ranked if v.precision == "int8"), None)
    if measured and integer and best.precision != "int8" and not _failed(verdicts[integer.name]):
        ratio = speedup_over(measured, best.name, integer.name)
        notes.append(
            f"{best.name} ships in {best.precision}: on this target it is {ratio.estimate:.2f}x as fast as {integer.name} "
            f"[{ratio.low:.2f}, {ratio.high:.2f}]"
        )
    return notes


def _choose_unpruned(
    variants: Sequence[Variant],
    accuracy: Mapping[str, VariantAccuracy],
    measured: Mapping[str, LatencyMeasurement],
    budget: Budget,
) -> str:
    """Return the dense variant that would ship without pruning: the fastest within the accuracy budget."""
    limit = math.inf if budget.accuracy_drop is None else budget.accuracy_drop
    dense = [v for v in variants if v.network == "dense" and accuracy[v.name].drop.estimate <= limit]
    return min(dense, key=lambda v: _rank(v, measured, BASELINE)).name
