"""The architecture that loses the least importance at a latency that is measured on the target.

A few dozen random architectures are timed, a model of latency is learnt from them, the greedy search of `widths` asks
that model, and what it finds is timed and corrected for until the budget is met.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from toolchain import latency_model, progress, widths
from toolchain.architectures import Architectures
from toolchain.errors import ToolchainError
from toolchain.latency_model import Timed
from toolchain.values import Layer, Surgery
from toolchain.widths import Choice, Options

SAMPLES = 20  # random architectures
DROPPED = 0.15  # share of the blocks that a random architecture goes without
ATTEMPTS = 6
AIM = 0.97  # of the budget, so that noise and training do not carry it over
NEAREST = 0.94  # of the budget: less than that gives away accuracy
ROUNDS = 3  # processes that time what is believed


@dataclass(frozen=True)
class Found:
    """What a search came to."""

    plan: Surgery
    latency: float  # as a share of the dense model's as it would ship, measured
    predicted: float
    error: float  # relative, root mean square, of the latency model on what was timed
    timed: int  # architectures


def search(
    options: Options, plan_of: Callable[[Choice], Surgery], timer: Architectures, limit: float,
    rest: widths.Cost = lambda layers: 0.0,
) -> Found:  # fmt: skip
    """The plan whose architecture takes at most `limit` of the dense model's latency.

    Args:
        options: what may be cut.
        plan_of: a choice as a plan.
        timer: times plans.
        limit: share of the dense model's latency.
        rest: other budgets, as the share that is used of them; at most 1.

    Raises:
        ToolchainError: no architecture is that fast; says which latency can be reached.
    """
    with progress.bar("fit: architectures timed", SAMPLES + ATTEMPTS) as bar:
        samples = drawn(options, SAMPLES)
        known = [Timed(tuple(options.layers(options.whole)), 1.0)]
        known += _timed(options, plan_of, timer, samples, bar)
        correction, best = 1.0, None
        for _ in range(ATTEMPTS):
            model = latency_model.fit(known).times(correction)
            choice = _chosen(options, model, limit, rest)
            predicted = model(options.layers(choice))
            measured = timer.latencies([plan_of(choice)], bar, rounds=ROUNDS)[0]
            found = Found(plan_of(choice), measured, predicted, model.error, len(known))
            known.append(Timed(tuple(options.layers(choice)), measured))
            best = _better(best, found, limit)
            if NEAREST * limit <= measured <= limit:
                break
            correction *= measured / predicted
    assert best is not None
    if best.latency > limit:
        raise ToolchainError(_unreachable(limit, best.latency))
    return best


def _chosen(options: Options, latency: widths.Cost, limit: float, rest: widths.Cost) -> Choice:
    """What the latency model takes for the best at the limit; just below the limit where nothing more can go."""

    def used(layers: Sequence[Layer]) -> float:
        return max(latency(layers) / (AIM * limit), rest(layers))

    try:
        return widths.narrowed(options, used, 1.0)
    except widths.Unreachable as reason:
        if reason.least > 1 / AIM:
            raise ToolchainError(_unreachable(limit, reason.least * AIM * limit)) from reason
        return widths.narrowed(options, used, reason.least)


def _better(best: Found | None, other: Found, limit: float) -> Found:
    """Of those within the limit the slowest, which has the most left; else the fastest."""
    if best is None:
        return other
    inside = [one for one in (best, other) if one.latency <= limit]
    return max(inside, key=lambda one: one.latency) if inside else min((best, other), key=lambda one: one.latency)


def _unreachable(limit: float, least: float) -> str:
    return (
        f"the latency budget of {limit:.2f}x cannot be met by pruning: the nearest that can be reached is {least:.2f}x of "
        "the dense model as it would ship; raise [prune] max_share, protect less, or choose a smaller model"
    )


def _timed(
    options: Options, plan_of: Callable[[Choice], Surgery], timer: Architectures, choices: Sequence[Choice], bar: progress.Bar
) -> list[Timed]:  # fmt: skip
    latencies = timer.latencies([plan_of(choice) for choice in choices], bar)
    return [Timed(tuple(options.layers(c)), latency) for c, latency in zip(choices, latencies, strict=True)]


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
