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
from toolchain.pruning.width_search import Choice, Options
from toolchain.quantization.placement import Placement
from toolchain.search import latency_model
from toolchain.search.latency_model import LatencyModel, Timed

SAMPLES = 20  # random architectures
DROPPED = 0.15  # share of the blocks that a random architecture goes without
ATTEMPTS = 6
AIM = 0.965  # of the budget, so that noise and training do not carry it over: a trained model came out 2 % slower
SAFE = 0.985  # of the budget: what is measured beyond that is corrected for
NEAREST = 0.94  # of the budget: less than that gives away accuracy
ROUNDS = 3  # processes that time what is believed


class OutOfReach(ToolchainError):
    """No architecture meets the budget; says which one comes nearest."""


class Timer(Protocol):
    """What times plans."""

    def latencies(self, plans: Sequence[Surgery], bar: progress.Bar, *, rounds: int = 1) -> list[float]:
        """Latency of each plan's architecture, as a share of the dense model's."""


@dataclass(frozen=True)
class Job:
    """What is searched for."""

    options: Options  # what may be cut
    plan_of: Callable[[Choice], Surgery]
    limit: float  # share of the dense model's latency
    rest: width_search.Cost = lambda layers: 0.0  # other budgets, as the share that is used of them; at most 1


@dataclass(frozen=True)
class Fitted:
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
class Found:
    """What a search came to."""

    plan: Surgery
    latency: float  # as a share of the dense model's as it would ship, measured
    predicted: float
    model: LatencyModel  # corrected for what was measured so far
    timed: int  # architectures


def search(job: Job, timer: Timer) -> Found:
    """The plan whose architecture takes at most `job.limit` of the dense model's latency.

    Raises:
        OutOfReach: no architecture is that fast; says which latency can be reached.
    """
    with progress.bar("fit: architectures timed", 1 + SAMPLES + ATTEMPTS) as bar:
        samples = [job.options.whole, *drawn(job.options, SAMPLES)]  # at its own size the whole one takes 1.0
        latencies = timer.latencies([job.plan_of(choice) for choice in samples], bar)
        known = [
            Timed(tuple(job.options.layers(choice)), latency)
            for choice, latency in zip(samples, latencies, strict=True)
        ]
        return _met(job, timer, latency_model.fit(known), SAMPLES, bar)


def again(job: Job, timer: Timer, found: Found) -> Found:
    """The same for a timer that ships pruned models in another form: what was learnt is corrected, not learnt anew.

    Raises:
        OutOfReach: as `search`.
    """
    with progress.bar("fit: architectures timed in the pruned model's own form", 1 + ATTEMPTS) as bar:
        measured = timer.latencies([found.plan], bar, rounds=ROUNDS)[0]
        if _good(job, found.plan, measured):
            return replace(found, latency=measured, predicted=measured)
        return _met(job, timer, found.model.times(measured / found.latency), found.timed + 1, bar)


def _met(job: Job, timer: Timer, model: LatencyModel, timed: int, bar: progress.Bar) -> Found:
    """What the latency model finds, timed, with the model corrected for what was measured until that is the budget."""
    best: Found | None = None
    for attempt in range(1, ATTEMPTS + 1):
        choice = _chosen(job, model)
        plan, predicted = job.plan_of(choice), model(job.options.layers(choice))
        measured = timer.latencies([plan], bar, rounds=ROUNDS)[0]
        model = model.times(measured / predicted)
        known = best is not None and best.plan == plan  # another limit is the tighter one: no more can be had
        best = _better(best, Found(plan, measured, predicted, model, timed + attempt), job.limit)
        if _good(job, plan, measured) or (known and measured <= job.limit):
            break
    assert best is not None
    if best.latency > job.limit:
        raise OutOfReach(_unreachable(job.limit, best.latency))
    return best


def _good(job: Job, plan: Surgery, measured: float) -> bool:
    """Whether a latency is safely within the limit and makes use of it; of the whole model more cannot be had."""
    least = 0 if plan == job.plan_of(job.options.whole) else NEAREST * job.limit
    return least <= measured <= SAFE * job.limit


def _chosen(job: Job, latency: width_search.Cost) -> Choice:
    """What the latency model takes for the best at the limit; just below the limit where nothing more can go."""

    def used(layers: Sequence[Layer]) -> float:
        return max(latency(layers) / (AIM * job.limit), job.rest(layers))

    try:
        return width_search.narrowed(job.options, used, 1.0)
    except width_search.Unreachable as reason:
        if reason.least > 1 / AIM:
            raise OutOfReach(_unreachable(job.limit, reason.least * AIM * job.limit)) from reason
        return width_search.narrowed(job.options, used, reason.least)


def _better(best: Found | None, other: Found, limit: float) -> Found:
    """Of those safely within the limit the slowest, which has the most left; else the fastest."""
    if best is None:
        return other
    inside = [one for one in (best, other) if one.latency <= SAFE * limit]
    return max(inside, key=lambda one: one.latency) if inside else min((best, other), key=lambda one: one.latency)


def _unreachable(limit: float, least: float) -> str:
    return (
        f"the latency budget of {limit:.2g}x cannot be met by pruning: the nearest that can be reached is {least:.2f}x of "
        "the dense model as it would ship; raise [prune] max_share, protect less, or choose a smaller model"
    )


def drawn(options: Options, count: int) -> list[Choice]:
    """Random architectures, the same at every call: widths between the narrowest and the whole, some blocks gone."""
    dice = np.random.default_rng(0)
    found = []
    for _ in range(count):
        narrow = dice.uniform(0, 1)  # how far this one goes on the whole, so that all sizes are seen
        kept = []
        for index, group in enumerate(options.groups):
            possible = options.possible(index)
            place = dice.beta(1 + 2 * narrow, 3 - 2 * narrow) * (len(possible) - 1)
            kept.append(possible[round(place)] if possible else group.channels)
        gone = frozenset(block for block in options.blocks if dice.random() < DROPPED)
        found.append(replace(options.whole, kept=tuple(kept), dropped=gone))
    return found
