"""judge: measurement, budgets -> what ships, and a verdict for every budget and every promise.

Among the compressed variants that keep every promise on validation, the fastest is put forward: "left in float" is a
legal answer. It ships if it keeps them on test too.
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

# sign, factor, unit and format; all others are shares
RATIO_FORMATS = {"speedup": (-1, 1, "x", ".3f"), "latency": (1, 1, "x", ".3f")}
# agreement of artefact and torch model; and at most the slack below the runtime's with itself, as far as the images tell
MIN_TOP1_AGREEMENT = 0.985
TOP1_AGREEMENT_SLACK = 0.003
# rounding to eight bits of mantissa is a change of the model, as quantization is: it moves close calls to both sides
# (2 % on a noisy real set, so 0.4 points on 2,000 images by chance alone), and the budgets hold what it costs
BF16_MIN_TOP1_AGREEMENT = 0.96
BF16_MAX_ACCURACY_GAP = 0.01
MAX_ACCURACY_GAP = 0.003  # artefact against torch model
TOLERATED_IMAGES = 2  # on a small test set a few pictures may differ whatever their share


@dataclass(frozen=True)
class ShipDecision:
    """The decision."""

    shipped: str | None
    candidate: str  # what the verdicts are about
    unpruned: str  # the dense variant that would ship without pruning
    verdicts: tuple[Verdict, ...]
    notes: tuple[str, ...]


@dataclass(frozen=True)
class LatencyLimit:
    """A latency budget, as a share of what a dense variant takes."""

    share: float
    reference: str  # its name; "" where it cannot run on this machine


def run(
    job: Job,
    variants: Sequence[Variant],
    verified: Verification,
    measured: Mapping[str, LatencyMeasurement],
    plan: PruningPlan,
) -> ShipDecision:
    """Decide what ships and give a verdict on every budget; a lock that the plan comes from says which form ships."""
    pinned = plan.lock.ships if plan.lock else None
    return decide(
        variants, verified.validation, verified.test, measured, job.budget, plan.latency_fit, plan.dense_precision, pinned
    )  # fmt: skip


def decide(
    variants: Sequence[Variant], validation: Mapping[str, VariantAccuracy], test: Mapping[str, VariantAccuracy],
    measured: Mapping[str, LatencyMeasurement], budget: Budget, fitted: LatencyFit | None = None, dense: Precision | None = None,
    ships: Precision | None = None,
) -> ShipDecision:  # fmt: skip
    """Decides what ships: chosen on validation, judged on test, which no choice has seen.

    Args:
        variants: dense-fp32 among them, the baseline of every comparison.
        validation: decides which variant is put forward.
        test: gives the verdicts.
        measured: latency of each.
        budget: of recipe and target.
        fitted: how the latency budget was met untrained: the trained model is held to it.
        dense: the form that the dense model would ship in, of which budgets are shares; None: the best of them here.
        ships: the form that is to be put forward, as a lock says it; None: the fastest that keeps every promise.
    """
    baseline, usual = BASELINE, _usual(variants, validation, measured, budget)
    form = dense or (fitted.dense if fitted else None)
    shipping = next((v for v in variants if v.network == "dense" and v.precision == form), None)
    limit = LatencyLimit(fitted.limit, shipping.name if shipping else "") if fitted else None
    most = _bytes(budget, shipping or next(v for v in variants if v.name == usual))
    family = "pruned" if any(v.network == "pruned" for v in variants) else "dense"
    able = [v for v in variants if v.network == family]
    pinned = [v for v in able if v.precision == ships]
    able = pinned or able
    ranked = sorted(able, key=lambda v: _rank(v, measured, baseline))
    chosen_by = {v.name: give_verdicts(v, baseline, validation, measured, budget, limit, most) for v in ranked}
    passing = [v for v in ranked if not _failed(chosen_by[v.name])]
    # where all fail, the most accurate one shows how far away the budget is
    best = passing[0] if passing else min(ranked, key=lambda v: validation[v.name].drop.estimate)
    verdicts = give_verdicts(best, baseline, test, measured, budget, limit, most)
    notes = [*_notes(best, ranked, chosen_by, measured), *(["the lock says which form ships"] if pinned else [])]
    if missed := _failed(verdicts):
        notes = [f"nothing ships: {best.name} misses {', '.join(missed)}", *notes]
    shipped = None if missed else best.name
    return ShipDecision(shipped, best.name, usual, tuple(verdicts), tuple(notes))


def _bytes(budget: Budget, dense: Variant) -> float | None:
    """What `budget.size` allows; None where it is not asked for."""
    size = float(dense.artefact.size_bytes)
    return budget_limits.parse("size", budget.size).as_share_of(size) * size if budget.size is not None else None


def _rank(variant: Variant, measured: Mapping[str, LatencyMeasurement], baseline: str) -> float:
    """The fastest first; where nothing could be timed, the smallest, which on such targets is the integer one."""
    return -speedup_over(measured, variant.name, baseline).estimate if measured else float(variant.artefact.size_bytes)


def _failed(verdicts: Sequence[Verdict]) -> list[str]:
    return [verdict.check for verdict in verdicts if verdict.outcome == "fail"]


def speedup_over(measured: Mapping[str, LatencyMeasurement], name: str, baseline: str) -> Interval:
    """How many times faster `name` is than `baseline`, from paired rounds; not a number where nothing was timed."""
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
    most_bytes: float | None = None,
) -> list[Verdict]:
    """Every budget and promise for one variant."""
    own = accuracy[variant.name]
    found = []
    for check, drop, most in (
        ("accuracy_drop", own.drop, budget.accuracy_drop),
        ("balanced_drop", own.balanced_drop, budget.balanced_drop),
    ):
        if most is not None:
            found.append(_below(check, drop, most))
            if check == "accuracy_drop":
                found[-1] = replace(found[-1], why=found[-1].why + why_not_shown(most, drop.samples, own.disagreement))
    if budget.speedup is not None and not measured:
        found.append(_unmeasured("speedup", budget.speedup, "latency was not measured on this machine"))
    elif budget.speedup is not None:
        speed = speedup_over(measured, variant.name, baseline)
        slower = Interval(estimate=-speed.estimate, low=-speed.high, high=-speed.low, samples=speed.samples)
        found.append(_below("speedup", slower, -budget.speedup))
    if limit is not None and not (measured and limit.reference):
        why = "the form that the dense model would ship in" if measured else "latency"
        found.append(_unmeasured("latency", limit.share, f"{why} was not measured on this machine"))
    elif limit is not None:
        speed = speedup_over(measured, variant.name, limit.reference)
        share = Interval(estimate=1 / speed.estimate, low=1 / speed.high, high=1 / speed.low, samples=speed.samples)
        verdict = _below("latency", share, limit.share)
        found.append(replace(verdict, why=f"of {limit.reference}, as it would ship unpruned; {verdict.why}"))
    size = float(variant.artefact.size_bytes)
    for check, allowed in (("size_bytes", budget.size_bytes), ("size", most_bytes)):
        if allowed is not None:
            found.append(_exact(check, size, float(allowed), size <= allowed, "bytes of model files"))
    return [*found, *_promises(variant, own)]


def _below(check: str, value: Interval, limit: float) -> Verdict:
    """A budget on an estimate: the point decides, an interval that crosses the limit is said."""
    passed = value.estimate <= limit
    crossing = value.low <= limit < value.high if passed else value.low <= limit
    sign, factor, unit, form = RATIO_FORMATS.get(check, (1, 100, " points", "+.2f"))
    low, high = sorted((sign * factor * value.low, sign * factor * value.high))
    why = f"95 % interval {low:{form}} to {high:{form}}{unit}, {value.samples} samples"
    why += "; it crosses the limit, so this is not certain" if crossing else ""
    return Verdict(
        check=check, outcome="pass" if passed else "fail", measured=sign * value.estimate, limit=sign * limit, why=why
    )


def why_not_shown(limit: float, images: int, disagreement: float) -> str:
    """What is to be said of an accuracy budget that is finer than the test set can show; nothing where it can."""
    shown = statistics.minimum_detectable_difference(images, disagreement)
    if not 0 < limit < shown:
        return ""
    needed = statistics.images_needed(limit, disagreement)
    return (
        f"; this test set cannot show {100 * limit:.2g} pt: {images} images show {100 * shown:.1f} at the least, "
        f"{100 * limit:.2g} pt need about {needed}"
    )


def _unmeasured(check: str, limit: float, why: str) -> Verdict:
    return Verdict(check=check, outcome="not_measured", measured=None, limit=limit, why=why)


def _exact(check: str, measured: float, limit: float, passed: bool, why: str) -> Verdict:
    return Verdict(check=check, outcome="pass" if passed else "fail", measured=measured, limit=limit, why=why)


def _promises(variant: Variant, own: VariantAccuracy) -> list[Verdict]:
    """What holds for every artefact, whatever the budget: it is the model that was trained, and it runs in integers."""
    parity = own.parity
    floor = BF16_MIN_TOP1_AGREEMENT if variant.precision == "bf16" else MIN_TOP1_AGREEMENT
    why = f"artefact against torch model over {parity.images} images"
    if parity.runtime_agreement is not None:
        own_floor = parity.runtime_agreement - TOP1_AGREEMENT_SLACK - _by_chance(parity, parity.runtime_agreement)
        floor = max(floor, own_floor)
        why += f"; the runtime agrees with its own unoptimized graph on {parity.runtime_agreement:.4f}"
    floor = min(floor, 1 - TOLERATED_IMAGES / parity.images)
    gap = BF16_MAX_ACCURACY_GAP if variant.precision == "bf16" else MAX_ACCURACY_GAP
    gap = max(gap, TOLERATED_IMAGES / parity.images)
    found = [
        _exact("top1_agreement", parity.top1_agreement, floor, parity.top1_agreement >= floor - 1e-9, why),
        _exact(
            "accuracy_gap",
            parity.accuracy_gap,
            gap,
            abs(parity.accuracy_gap) <= gap + 1e-9,
            "artefact minus torch model",
        ),
    ]
    cover = own.coverage
    if variant.precision == "int8" and cover is None:
        found.append(_unmeasured("integer_coverage", 1.0, "this machine does not run the target's instructions"))
    elif variant.precision == "int8" and cover is not None:
        names = f"; in float: {', '.join(cover.float_ops)}" if cover.float_ops else ""
        full = cover.integer >= cover.planned
        why = f"{cover.integer} of {cover.planned} planned layers run in integers, {cover.total} in all{names}"
        share = cover.integer / max(cover.planned, 1)
        found.append(_exact("integer_coverage", share, 1.0, full, why))
    return found


def _by_chance(parity: Parity, own: float) -> float:
    """How far two agreements over the same images are apart by chance: 1.96 standard errors of their difference."""
    apart = (1 - parity.top1_agreement) + (1 - own)
    return 1.96 * math.sqrt(apart / parity.images)


def _notes(
    best: Variant,
    ranked: Sequence[Variant],
    verdicts: Mapping[str, Sequence[Verdict]],
    measured: Mapping[str, LatencyMeasurement],
) -> list[str]:
    notes = []
    for other in ranked:
        if other is best or not _failed(verdicts[other.name]):
            break  # slower ones need no excuse
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


def _usual(
    variants: Sequence[Variant],
    accuracy: Mapping[str, VariantAccuracy],
    measured: Mapping[str, LatencyMeasurement],
    budget: Budget,
) -> str:
    """The dense variant that would ship without pruning: the fastest that keeps the accuracy budget."""
    limit = math.inf if budget.accuracy_drop is None else budget.accuracy_drop
    dense = [v for v in variants if v.network == "dense" and accuracy[v.name].drop.estimate <= limit]
    return min(dense, key=lambda v: _rank(v, measured, BASELINE)).name
