"""judge: measurement, budgets -> what ships, and a verdict for every budget and every promise.

Among the compressed variants that keep every promise, the fastest ships: "left in float" is a legal answer. Where
none does, the one that comes closest on accuracy is named in the verdicts and nothing ships.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from toolchain import stats
from toolchain.values import Accuracy, Budget, Interval, Measurement, Variant, Verdict

TOP1_FLOOR = 0.985  # agreement of artefact and torch model; or what the runtime agrees with itself, less the slack
TOP1_SLACK = 0.003
BF16_TOP1_FLOOR = 0.97  # eight bits of mantissa move close calls; accuracy itself is held by the other checks
ACCURACY_GAP = 0.003  # artefact against torch model
SMALL_SET_IMAGES = 2  # on a small test set a few pictures may differ whatever their share


@dataclass(frozen=True)
class Judged:
    """The decision."""

    shipped: str | None
    candidate: str  # what the verdicts are about
    verdicts: tuple[Verdict, ...]
    notes: tuple[str, ...]


def merged(recipe: Budget, target: Budget) -> Budget:
    """The recipe's budget wins over the target's, key by key."""
    chosen = {key: mine if (mine := getattr(recipe, key)) is not None else getattr(target, key) for key in vars(recipe)}
    return Budget(**chosen)


def run(
    variants: Sequence[Variant], accuracy: Mapping[str, Accuracy], measured: Mapping[str, Measurement], budget: Budget
) -> Judged:
    """Decides what ships. The first variant is dense-fp32, the baseline of every comparison."""
    family = "pruned" if any(v.family == "pruned" for v in variants) else "dense"
    able = [v for v in variants if v.family == family]
    ranked = sorted(able, key=lambda v: -faster(measured, v.name, variants[0].name).estimate)
    verdicts = {v.name: verdicts_of(v, variants[0].name, accuracy, measured, budget) for v in ranked}
    passing = [v for v in ranked if all(verdict.outcome != "fail" for verdict in verdicts[v.name])]
    if not passing:
        closest = min(ranked, key=lambda v: sum(one.outcome == "fail" for one in verdicts[v.name]))
        return Judged(
            None, closest.name, tuple(verdicts[closest.name]), (f"nothing ships: {closest.name} comes closest",)
        )
    best = passing[0]
    return Judged(best.name, best.name, tuple(verdicts[best.name]), tuple(_notes(best, ranked, verdicts, measured)))


def faster(measured: Mapping[str, Measurement], name: str, baseline: str) -> Interval:
    """How many times faster `name` is than `baseline`, from paired rounds."""
    if name == baseline:
        return Interval(estimate=1.0, low=1.0, high=1.0, samples=0)
    return stats.speedup(measured[name].round_logs[baseline])


def verdicts_of(
    variant: Variant,
    baseline: str,
    accuracy: Mapping[str, Accuracy],
    measured: Mapping[str, Measurement],
    budget: Budget,
) -> list[Verdict]:
    """Every budget and promise for one variant."""
    own = accuracy[variant.name]
    found = []
    for check, drop, limit in (
        ("accuracy_drop", own.drop, budget.accuracy_drop),
        ("balanced_drop", own.balanced_drop, budget.balanced_drop),
    ):
        if limit is not None:
            found.append(_below(check, drop, limit))
    if budget.speedup is not None:
        speed = faster(measured, variant.name, baseline)
        slower = Interval(estimate=-speed.estimate, low=-speed.high, high=-speed.low, samples=speed.samples)
        found.append(_below("speedup", slower, -budget.speedup))
    if budget.size_bytes is not None:
        size = float(variant.artefact.size_bytes)
        found.append(
            _exact("size_bytes", size, float(budget.size_bytes), size <= budget.size_bytes, "bytes of model files")
        )
    return [*found, *_promises(variant, own)]


def _below(check: str, value: Interval, limit: float) -> Verdict:
    """A budget on an estimate: the point decides, an interval that crosses the limit is said."""
    passed = value.estimate <= limit
    crossing = value.low <= limit < value.high if passed else value.low <= limit
    sign, factor, unit = (-1, 1, "x") if check == "speedup" else (1, 100, " points")
    low, high = sorted((sign * factor * value.low, sign * factor * value.high))
    why = f"95 % interval {low:+.2f} to {high:+.2f}{unit}, {value.samples} samples"
    why += "; it crosses the limit, so this is not certain" if crossing else ""
    return Verdict(
        check=check, outcome="pass" if passed else "fail", measured=sign * value.estimate, limit=sign * limit, why=why
    )


def _exact(check: str, measured: float, limit: float, passed: bool, why: str) -> Verdict:
    return Verdict(check=check, outcome="pass" if passed else "fail", measured=measured, limit=limit, why=why)


def _promises(variant: Variant, own: Accuracy) -> list[Verdict]:
    """What holds for every artefact, whatever the budget: it is the model that was trained, and it runs in integers."""
    parity = own.parity
    floor = BF16_TOP1_FLOOR if variant.precision == "bf16" else TOP1_FLOOR
    why = f"artefact against torch model over {parity.images} images"
    if parity.runtime_agreement is not None:
        floor = min(floor, parity.runtime_agreement - TOP1_SLACK)
        why += f"; the runtime agrees with its own unoptimized graph on {parity.runtime_agreement:.4f}"
    floor = min(floor, 1 - SMALL_SET_IMAGES / parity.images)
    gap = max(ACCURACY_GAP, SMALL_SET_IMAGES / parity.images)
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
    if variant.precision == "int8":
        cover = own.coverage
        names = f"; in float: {', '.join(cover.float_ops)}" if cover.float_ops else ""
        full = cover.integer >= cover.planned
        why = f"{cover.integer} of {cover.planned} planned layers run in integers, {cover.total} in all{names}"
        share = cover.integer / max(cover.planned, 1)
        found.append(_exact("integer_coverage", share, 1.0, full, why))
    return found


def _notes(
    best: Variant,
    ranked: Sequence[Variant],
    verdicts: Mapping[str, Sequence[Verdict]],
    measured: Mapping[str, Measurement],
) -> list[str]:
    notes = []
    for other in ranked:
        if other is best:
            break  # slower ones need no excuse
        missed = ", ".join(v.check for v in verdicts[other.name] if v.outcome == "fail")
        notes.append(f"{other.name} is faster than {best.name} but misses {missed}")
    integer = next((v for v in ranked if v.precision == "int8"), None)
    if integer and best.precision != "int8" and all(v.outcome != "fail" for v in verdicts[integer.name]):
        ratio = faster(measured, best.name, integer.name)
        notes.append(
            f"{best.name} ships in {best.precision}: on this target it is {ratio.estimate:.2f}x as fast as {integer.name} "
            f"[{ratio.low:.2f}, {ratio.high:.2f}]"
        )
    return notes


def usual(
    variants: Sequence[Variant], accuracy: Mapping[str, Accuracy], measured: Mapping[str, Measurement], budget: Budget
) -> str:
    """The dense variant that would ship without pruning: the fastest that keeps the accuracy budget."""
    limit = math.inf if budget.accuracy_drop is None else budget.accuracy_drop
    dense = [v for v in variants if v.family == "dense" and accuracy[v.name].drop.estimate <= limit]
    return max(dense, key=lambda v: faster(measured, v.name, variants[0].name).estimate).name
