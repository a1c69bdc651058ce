"""Decide what ships: the fastest variant that keeps every budget and every check of the artefact on validation.

It may be any variant: pruned or dense, int8, bf16 or float. It ships if no check fails on the test split, which no choice
has seen; a check that the test split is too small to decide does not block, because validation has chosen.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from toolchain.config.job import Job
from toolchain.config.recipe import Budget
from toolchain.core.run_report import BASELINE
from toolchain.core.types import Precision
from toolchain.export.export_variants import Variant
from toolchain.gates import artefact_checks, budget_checks, nearest_budget, outcomes
from toolchain.gates.budget_checks import Limits, speedup_over
from toolchain.gates.nearest_budget import NearestBudget
from toolchain.gates.verdict import Verdict
from toolchain.measure.accuracy import VariantAccuracy, Verification
from toolchain.measure.latency import LatencyMeasurement
from toolchain.search.latency_search import LatencyFit
from toolchain.search.pruning_plan import PruningPlan


@dataclass(frozen=True, kw_only=True)
class ShipDecision:
    """What ships, with the verdicts on the candidate."""

    shipped: str | None
    candidate: str  # the variant that the verdicts are about: the one that ships, or the best where none does
    unpruned: str  # the dense variant that would ship without pruning
    verdicts: tuple[Verdict, ...]
    notes: tuple[str, ...]
    missed: tuple[str, ...] = ()  # checks because of which nothing ships
    nearest: tuple[NearestBudget, ...] = ()  # budgets at which something would ship, the nearest first


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
    """Choose the candidate on validation, and judge it on the test split.

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
    unpruned = _choose_unpruned(variants, validation, measured, budget)
    limits = _resolve_limits(variants, unpruned, budget, fitted, dense)
    eligible = _list_eligible(variants, budget)
    pinned = [v for v in eligible if v.precision == ships]
    ranked = sorted(pinned or eligible, key=lambda v: _rank(v, measured))
    on_validation = {v.name: give_verdicts(v, validation, measured, limits) for v in ranked}
    passing = [v for v in ranked if not _missed(on_validation[v.name])]
    nearest = nearest_budget.find(ranked, on_validation)
    best = passing[0] if passing else _choose_closest(ranked, nearest, validation)
    verdicts = give_verdicts(best, test, measured, limits)
    failed = [verdict.check for verdict in verdicts if _blocks_shipping(verdict)]
    missed = failed if passing else list(dict.fromkeys([*failed, *_missed(on_validation[best.name])]))
    notes = _explain_choice(best, ranked, on_validation, measured)
    if pinned:
        notes.append("the lock names the precision that ships")
    if missed:
        where = " on validation" if not failed else ""
        notes.insert(0, f"nothing ships: {best.name} misses {', '.join(missed)}{where}")
    return ShipDecision(
        shipped=None if missed else best.name, candidate=best.name, unpruned=unpruned, verdicts=tuple(verdicts),
        notes=tuple(notes), missed=tuple(missed), nearest=tuple(entry for entry in nearest if entry.flags) if missed else (),
    )  # fmt: skip


def give_verdicts(
    variant: Variant,
    quality: Mapping[str, VariantAccuracy],
    measured: Mapping[str, LatencyMeasurement],
    limits: Limits,
) -> list[Verdict]:
    """Return a verdict on every budget and every check of one variant; `quality` is of one split, by variant."""
    of_variant = quality[variant.name]
    budgets = budget_checks.judge(variant, of_variant, measured, limits)
    return [*budgets, *artefact_checks.judge(variant, of_variant)]


def _resolve_limits(
    variants: Sequence[Variant], unpruned: str, budget: Budget, fitted: LatencyFit | None, dense: Precision | None
) -> Limits:
    """Return the budgets, with those resolved that are shares of the dense variant that would ship."""
    precision = dense or (fitted.dense if fitted else None)
    shipping = next((v for v in variants if v.network == "dense" and v.precision == precision), None)
    return Limits(
        budget=budget,
        latency_share=fitted.limit if fitted else None,
        latency_baseline=shipping.name if shipping else "",
        size_bytes=budget_checks.resolve_size(budget, shipping or next(v for v in variants if v.name == unpruned)),
    )


def _list_eligible(variants: Sequence[Variant], budget: Budget) -> list[Variant]:
    """Return what may ship: everything but the dense float model of a recipe that prunes, unless the budget allows it."""
    prunes = any(variant.network == "pruned" for variant in variants)
    return [variant for variant in variants if not prunes or budget.dense_float or variant.name != BASELINE]


def _rank(variant: Variant, measured: Mapping[str, LatencyMeasurement]) -> float:
    """Return a key that sorts the fastest first; where nothing could be timed, the smallest, which there is the int8 one."""
    return -speedup_over(measured, variant.name, BASELINE).estimate if measured else float(variant.artefact.size_bytes)


def _blocks_shipping(verdict: Verdict) -> bool:
    return outcomes.exit_status("export", [verdict.outcome]) != 0


def _missed(verdicts: Sequence[Verdict]) -> list[str]:
    """Return the checks that rule a variant out on validation: failed ones, and budgets whose estimate is over the limit."""
    return [verdict.check for verdict in verdicts if _blocks_shipping(verdict) or budget_checks.misses_budget(verdict)]


def _choose_closest(
    ranked: Sequence[Variant], nearest: Sequence[NearestBudget], validation: Mapping[str, VariantAccuracy]
) -> Variant:
    """Return the best of variants that all miss something: the one that the least loosened budget would ship.

    Where every artefact is refused, it is the most accurate one.
    """
    if nearest:
        return next(variant for variant in ranked if variant.name == nearest[0].variant)
    return min(ranked, key=lambda variant: validation[variant.name].drop.estimate)


def _explain_choice(
    best: Variant,
    ranked: Sequence[Variant],
    verdicts: Mapping[str, Sequence[Verdict]],
    measured: Mapping[str, LatencyMeasurement],
) -> list[str]:
    """Say why faster variants do not ship, and why a float variant does."""
    notes = []
    for other in ranked:
        missed = _missed(verdicts[other.name])
        if other is best or not missed:
            break  # slower variants need no explanation
        notes.append(f"{other.name} is faster than {best.name} but misses {', '.join(missed)} on validation")
    int8 = next((v for v in ranked if v.precision == "int8" and v.network == best.network), None)
    if measured and int8 and best.precision != "int8" and not _missed(verdicts[int8.name]):
        ratio = speedup_over(measured, best.name, int8.name)
        notes.append(
            f"{best.name} ships in {best.precision}: on this target it is {ratio.estimate:.2f}x as fast as {int8.name} "
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
    return min(dense, key=lambda v: _rank(v, measured)).name
