"""Find the architecture that loses the least importance within a latency budget, measured on the target.

Random architectures are timed, a latency model is fitted to them, the greedy search of `width_search` minimizes with that
model, and its result is timed; the model is corrected by that timing until the result meets the budget.
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
from toolchain.pruning.width_search import CostFunction, SearchSpace, Subnetwork
from toolchain.quantization.placement import Placement
from toolchain.search import latency_model
from toolchain.search.latency_model import LatencyModel, TimedArchitecture

RANDOM_ARCHITECTURES = 20  # timed to fit the latency model, beside the whole model
BLOCK_DROP_PROBABILITY = 0.15  # of each droppable block in a random architecture
MAX_ATTEMPTS = 6
# Shares of the latency budget. The aim leaves room for noise and for training: a trained model was 2 % slower.
AIMED_BUDGET_SHARE = 0.965
MAX_BUDGET_SHARE = 0.985  # a measured latency above it is corrected for
MIN_BUDGET_SHARE = 0.94  # a measured latency below it gives away accuracy
CONFIRMING_ROUNDS = 3  # processes that time an architecture that may be chosen


class BudgetUnreachable(ToolchainError):
    """No architecture meets the budget; the message names the nearest that can be reached."""


class PlanTimer(Protocol):
    """Times pruning plans."""

    def measure_latencies(self, plans: Sequence[Surgery], bar: progress.ProgressBar, *, rounds: int = 1) -> list[float]:
        """Measure the latency of each plan's architecture, as a share of the dense model's."""


@dataclass(frozen=True)
class LatencyProblem:
    """A search for the best architecture within a latency budget."""

    search_space: SearchSpace
    make_plan: Callable[[Subnetwork], Surgery]
    max_latency_share: float  # of the dense model's latency
    other_budget_use: CostFunction = lambda layers: 0.0  # used share of the other budgets; at most 1


@dataclass(frozen=True)
class LatencyFit:
    """How a latency budget was met. Latencies are shares of the latency of the dense model as it would ship."""

    limit: float
    latency: float  # measured on the untrained architecture
    predicted: float
    error: float  # of the latency model: root mean square of the relative error
    timed: int  # architectures
    dense: Precision  # in which the dense model would ship
    dense_ms: float
    placement: Placement | None  # of the pruned model, where it was searched for at nearly the same widths


@dataclass(frozen=True)
class TimedPlan:
    """A plan whose architecture was timed. Latencies are shares of the latency of the dense model as it would ship."""

    plan: Surgery
    latency: float  # measured
    predicted: float
    latency_model: LatencyModel  # corrected by all timings so far
    architectures_timed: int


def find_plan(problem: LatencyProblem, timer: PlanTimer) -> TimedPlan:
    """Return the plan that loses the least importance within `problem.max_latency_share`.

    Raises:
        BudgetUnreachable: no architecture is that fast; the message says which latency can be reached.
    """
    space = problem.search_space
    with progress.show_bar("fit: architectures timed", 1 + RANDOM_ARCHITECTURES + MAX_ATTEMPTS) as bar:
        # the whole model too: with smaller images its latency share is not 1
        subnetworks = [space.unpruned, *sample_architectures(space, RANDOM_ARCHITECTURES)]
        latencies = timer.measure_latencies([problem.make_plan(subnetwork) for subnetwork in subnetworks], bar)
        timed = [
            TimedArchitecture(tuple(space.remaining_layers(subnetwork)), latency)
            for subnetwork, latency in zip(subnetworks, latencies, strict=True)
        ]
        return _search_and_correct(problem, timer, latency_model.fit(timed), RANDOM_ARCHITECTURES, bar)


def refine_plan(problem: LatencyProblem, timer: PlanTimer, first: TimedPlan) -> TimedPlan:
    """Return a plan for a timer that ships pruned models in another form, starting from the plan for the first form.

    The latency model is scaled by one timing in the new form instead of being fitted again.

    Raises:
        BudgetUnreachable: as for `find_plan`.
    """
    with progress.show_bar("fit: architectures timed in the pruned model's own form", 1 + MAX_ATTEMPTS) as bar:
        measured = timer.measure_latencies([first.plan], bar, rounds=CONFIRMING_ROUNDS)[0]
        if _meets_budget(problem, first.plan, measured):
            return replace(first, latency=measured, predicted=measured)
        model = first.latency_model.scale(measured / first.latency)
        return _search_and_correct(problem, timer, model, first.architectures_timed + 1, bar)


def _search_and_correct(
    problem: LatencyProblem, timer: PlanTimer, model: LatencyModel, timed: int, bar: progress.ProgressBar
) -> TimedPlan:
    """Search with the latency model, time the result, correct the model, and repeat until the result meets the budget.

    Args:
        problem: the search.
        timer: times the results.
        model: fitted to `timed` architectures.
        timed: architectures that were timed before.
        bar: gets a step per timing.
    """
    limit = problem.max_latency_share
    best: TimedPlan | None = None
    for attempt in range(1, MAX_ATTEMPTS + 1):
        subnetwork = _search(problem, model)
        plan, predicted = problem.make_plan(subnetwork), model(problem.search_space.remaining_layers(subnetwork))
        measured = timer.measure_latencies([plan], bar, rounds=CONFIRMING_ROUNDS)[0]
        model = model.scale(measured / predicted)
        repeated = best is not None and best.plan == plan  # another budget binds, so the latency stays lower
        best = _choose_better(best, TimedPlan(plan, measured, predicted, model, timed + attempt), limit)
        if _meets_budget(problem, plan, measured) or (repeated and measured <= limit):
            break
    assert best is not None
    if best.latency > limit:
        raise BudgetUnreachable(_describe_unreachable(limit, best.latency))
    return best


def _meets_budget(problem: LatencyProblem, plan: Surgery, measured: float) -> bool:
    """Return whether a latency is safely within the budget and uses most of it; the whole model cannot use more."""
    limit = problem.max_latency_share
    lowest = 0 if plan == problem.make_plan(problem.search_space.unpruned) else MIN_BUDGET_SHARE * limit
    return lowest <= measured <= MAX_BUDGET_SHARE * limit


def _search(problem: LatencyProblem, predict_latency: CostFunction) -> Subnetwork:
    """Return the best architecture at the aimed latency by the model, or the fastest where that is just above the aim."""
    aim = AIMED_BUDGET_SHARE * problem.max_latency_share

    def budget_use(layers: Sequence[Layer]) -> float:
        return max(predict_latency(layers) / aim, problem.other_budget_use(layers))

    try:
        return width_search.search(problem.search_space, budget_use, 1.0)
    except width_search.LimitUnreachable as reason:
        if reason.lowest_cost > 1 / AIMED_BUDGET_SHARE:
            message = _describe_unreachable(problem.max_latency_share, reason.lowest_cost * aim)
            raise BudgetUnreachable(message) from reason
        return width_search.search(problem.search_space, budget_use, reason.lowest_cost)


def _choose_better(best: TimedPlan | None, other: TimedPlan, limit: float) -> TimedPlan:
    """Return the slowest of those safely within the limit, because it keeps the most; else the fastest."""
    if best is None:
        return other
    within = [plan for plan in (best, other) if plan.latency <= MAX_BUDGET_SHARE * limit]
    if within:
        return max(within, key=lambda plan: plan.latency)
    return min((best, other), key=lambda plan: plan.latency)


def _describe_unreachable(limit: float, least: float) -> str:
    return (
        f"the latency budget of {limit:.2g}x cannot be met by pruning: the nearest that can be reached is {least:.2f}x the "
        "latency of the dense model as it would ship. Raise [prune] max_share, protect fewer layers, or choose a smaller "
        "model"
    )


def sample_architectures(space: SearchSpace, count: int) -> list[Subnetwork]:
    """Return random architectures of all sizes from the narrowest to the whole model, the same at every call.

    Args:
        space: what may be removed.
        count: number of architectures.
    """
    generator = np.random.default_rng(0)
    subnetworks = []
    for _ in range(count):
        relative_size = generator.uniform(0, 1)  # drawn once per architecture, so that all sizes occur
        kept_channels = []
        for index, group in enumerate(space.groups):
            widths = space.allowed_widths(index)
            position = generator.beta(1 + 2 * relative_size, 3 - 2 * relative_size) * (len(widths) - 1)
            kept_channels.append(widths[round(position)] if widths else group.channels)
        dropped = frozenset(block for block in space.droppable_blocks if generator.random() < BLOCK_DROP_PROBABILITY)
        subnetworks.append(replace(space.unpruned, kept_channels=tuple(kept_channels), dropped_blocks=dropped))
    return subnetworks
