"""The architecture that loses the least importance at a latency that is measured on the target.

A few dozen random architectures are timed, a model of latency is learnt from them, the greedy search of `widths` asks
that model, and what it finds is timed and corrected for until the budget is met.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np

from toolchain.core import progress
from toolchain.core.errors import ToolchainError
from toolchain.core.types import Precision
from toolchain.models.profile import Layer
from toolchain.pruning import width_search
from toolchain.pruning.surgery import Surgery
from toolchain.pruning.width_search import SearchSpace, Subnetwork
from toolchain.quantization.placement import Placement
from toolchain.search import latency_model
from toolchain.search.latency_model import LatencyModel, TimedArchitecture

RANDOM_ARCHITECTURES = 20  # random architectures
BLOCK_DROP_PROBABILITY = 0.15  # share of the blocks that a random architecture goes without
MAX_ATTEMPTS = 6
AIMED_BUDGET_SHARE = (
    0.965  # of the budget, so that noise and training do not carry it over: a trained model came out 2 % slower
)
MAX_BUDGET_SHARE = 0.985  # of the budget: what is measured beyond that is corrected for
MIN_BUDGET_SHARE = 0.94  # of the budget: less than that gives away accuracy
CONFIRMING_ROUNDS = 3  # processes that time what is believed


class BudgetUnreachable(ToolchainError):
    """No architecture meets the budget; says which one comes nearest."""


class PlanTimer(Protocol):
    """What times plans."""

    def measure_latencies(self, plans: Sequence[Surgery], bar: progress.ProgressBar, *, rounds: int = 1) -> list[float]:
        """Latency of each plan's architecture, as a share of the dense model's."""


@dataclass(frozen=True)
class LatencyProblem:
    """What is searched for."""

    search_space: SearchSpace  # what may be cut
    make_plan: Callable[[Subnetwork], Surgery]
    max_latency_share: float  # share of the dense model's latency
    other_budget_use: width_search.CostFunction = lambda layers: (
        0.0
    )  # other budgets, as the share that is used of them; at most 1


@dataclass(frozen=True)
class LatencyFit:
    """What the search for a latency came to, as shares of the dense model's latency as it would ship."""

    limit: float
    latency: float  # measured, untrained
    predicted: float
    error: float  # relative, root mean square, of the latency model
    timed: int  # architectures
    dense: Precision  # the form that the dense model would ship in
    dense_ms: float
    placement: Placement | None  # of the pruned model, where it was found for one of nearly the same widths


@dataclass(frozen=True)
class TimedPlan:
    """What a search came to."""

    plan: Surgery
    latency: float  # as a share of the dense model's as it would ship, measured
    predicted: float
    latency_model: LatencyModel  # corrected for what was measured so far
    architectures_timed: int  # architectures


def find_plan(job: LatencyProblem, timer: PlanTimer) -> TimedPlan:
    """The plan whose architecture takes at most `job.limit` of the dense model's latency.

    Raises:
        OutOfReach: no architecture is that fast; says which latency can be reached.
    """
    with progress.show_bar("fit: architectures timed", 1 + RANDOM_ARCHITECTURES + MAX_ATTEMPTS) as bar:
        samples = [
            job.search_space.unpruned,
            *sample_architectures(job.search_space, RANDOM_ARCHITECTURES),
        ]  # at its own size the whole one takes 1.0
        latencies = timer.measure_latencies([job.make_plan(choice) for choice in samples], bar)
        known = [
            TimedArchitecture(tuple(job.search_space.remaining_layers(choice)), latency)
            for choice, latency in zip(samples, latencies, strict=True)
        ]
        return _met(job, timer, latency_model.fit(known), RANDOM_ARCHITECTURES, bar)


def refine_plan(job: LatencyProblem, timer: PlanTimer, found: TimedPlan) -> TimedPlan:
    """The same for a timer that ships pruned models in another form: what was learnt is corrected, not learnt anew.

    Raises:
        OutOfReach: as `search`.
    """
    with progress.show_bar("fit: architectures timed in the pruned model's own form", 1 + MAX_ATTEMPTS) as bar:
        measured = timer.measure_latencies([found.plan], bar, rounds=CONFIRMING_ROUNDS)[0]
        if _good(job, found.plan, measured):
            return replace(found, latency=measured, predicted=measured)
        return _met(job, timer, found.latency_model.scale(measured / found.latency), found.architectures_timed + 1, bar)


def _met(
    job: LatencyProblem, timer: PlanTimer, model: LatencyModel, timed: int, bar: progress.ProgressBar
) -> TimedPlan:
    """What the latency model finds, timed, with the model corrected for what was measured until that is the budget."""
    best: TimedPlan | None = None
    for attempt in range(1, MAX_ATTEMPTS + 1):
        choice = _chosen(job, model)
        plan, predicted = job.make_plan(choice), model(job.search_space.remaining_layers(choice))
        measured = timer.measure_latencies([plan], bar, rounds=CONFIRMING_ROUNDS)[0]
        model = model.scale(measured / predicted)
        known = best is not None and best.plan == plan  # another limit is the tighter one: no more can be had
        best = _better(best, TimedPlan(plan, measured, predicted, model, timed + attempt), job.max_latency_share)
        if _good(job, plan, measured) or (known and measured <= job.max_latency_share):
            break
    assert best is not None
    if best.latency > job.max_latency_share:
        raise BudgetUnreachable(_unreachable(job.max_latency_share, best.latency))
    return best


def _good(job: LatencyProblem, plan: Surgery, measured: float) -> bool:
    """Whether a latency is safely within the limit and makes use of it; of the whole model more cannot be had."""
    least = 0 if plan == job.make_plan(job.search_space.unpruned) else MIN_BUDGET_SHARE * job.max_latency_share
    return least <= measured <= MAX_BUDGET_SHARE * job.max_latency_share


def _chosen(job: LatencyProblem, latency: width_search.CostFunction) -> Subnetwork:
    """What the latency model takes for the best at the limit; just below the limit where nothing more can go."""

    def used(layers: Sequence[Layer]) -> float:
        return max(latency(layers) / (AIMED_BUDGET_SHARE * job.max_latency_share), job.other_budget_use(layers))

    try:
        return width_search.search(job.search_space, used, 1.0)
    except width_search.LimitUnreachable as reason:
        if reason.lowest_cost > 1 / AIMED_BUDGET_SHARE:
            raise BudgetUnreachable(
                _unreachable(job.max_latency_share, reason.lowest_cost * AIMED_BUDGET_SHARE * job.max_latency_share)
            ) from reason
        return width_search.search(job.search_space, used, reason.lowest_cost)


def _better(best: TimedPlan | None, other: TimedPlan, limit: float) -> TimedPlan:
    """Of those safely within the limit the slowest, which has the most left; else the fastest."""
    if best is None:
        return other
    inside = [one for one in (best, other) if one.latency <= MAX_BUDGET_SHARE * limit]
    return max(inside, key=lambda one: one.latency) if inside else min((best, other), key=lambda one: one.latency)


def _unreachable(limit: float, least: float) -> str:
    return (
        f"the latency budget of {limit:.2g}x cannot be met by pruning: the nearest that can be reached is {least:.2f}x of "
        "the dense model as it would ship; raise [prune] max_share, protect less, or choose a smaller model"
    )


def sample_architectures(options: SearchSpace, count: int) -> list[Subnetwork]:
    """Random architectures, the same at every call: widths between the narrowest and the whole, some blocks gone."""
    dice = np.random.default_rng(0)
    found = []
    for _ in range(count):
        narrow = dice.uniform(0, 1)  # how far this one goes on the whole, so that all sizes are seen
        kept = []
        for index, group in enumerate(options.groups):
            possible = options.allowed_widths(index)
            place = dice.beta(1 + 2 * narrow, 3 - 2 * narrow) * (len(possible) - 1)
            kept.append(possible[round(place)] if possible else group.channels)
        gone = frozenset(block for block in options.droppable_blocks if dice.random() < BLOCK_DROP_PROBABILITY)
        found.append(replace(options.unpruned, kept_channels=tuple(kept), dropped_blocks=gone))
    return found
