"""The search for an architecture at a latency: it meets the budget on a made-up device, or says what can be reached."""

import dataclasses
from collections.abc import Sequence

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from toolchain.config.recipe import PruneSpec
from toolchain.core import progress
from toolchain.core.errors import ToolchainError
from toolchain.models import profile
from toolchain.models.profile import Layer
from toolchain.pruning import search_space as options_module
from toolchain.pruning import width_search
from toolchain.pruning.criteria import magnitude
from toolchain.pruning.surgery import Surgery
from toolchain.pruning.width_search import SearchSpace, Subnetwork
from toolchain.search import latency_search

IMAGE = torch.zeros(1, 3, 16, 16)


class Residual(nn.Module):
    def __init__(self, channels: int, inner: int) -> None:
        super().__init__()
        self.wide, self.deep = nn.Conv2d(channels, inner, 1), nn.Conv2d(inner, inner, 3, padding=1, groups=inner)
        self.back = nn.Conv2d(inner, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.back(torch.relu(self.deep(torch.relu(self.wide(x)))))


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 32, 3, 2, 1)
        self.body = nn.Sequential(*(Residual(32, 96) for _ in range(4)))
        self.head = nn.Linear(32, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(torch.relu(self.stem(x))).mean((2, 3)))


@pytest.fixture(scope="module")
def options() -> SearchSpace:
    torch.manual_seed(0)
    return options_module.build_search_space(
        Net(), IMAGE, head="head", spec=PruneSpec(), alignment=16, criterion=magnitude.score,
        blocks=("body.1", "body.2"),
    )  # fmt: skip


class Device:
    """Times plans as a core would that is slow at depthwise layers and measures with some noise."""

    def __init__(self, options: SearchSpace) -> None:
        self.options, self.dice, self.asked = options, np.random.default_rng(0), 0
        self.plans: dict[int, Subnetwork] = {}

    def plan(self, choice: Subnetwork) -> Surgery:
        planned = Surgery(dropped=(str(len(self.plans)),))
        self.plans[len(self.plans)] = choice
        return planned

    def true(self, layers: Sequence[Layer]) -> float:
        rates = {"depthwise": 8.0, "pointwise": 1.0, "spatial": 0.6, "linear": 2.0}
        padded = sum(rates[one.kind] * one.macs for one in layers)
        return padded + 40_000.0 * len(layers)  # what a call costs

    def measure_latencies(self, plans: Sequence[Surgery], bar: progress.ProgressBar, *, rounds: int = 1) -> list[float]:
        whole = self.true(self.options.remaining_layers(self.options.unpruned))
        self.asked += len(plans)
        noise = 1 + 0.01 / rounds**0.5 * self.dice.standard_normal(len(plans))
        chosen = [self.plans[int(plan.dropped[0])] for plan in plans]
        return [self.true(self.options.remaining_layers(c)) / whole * n for c, n in zip(chosen, noise, strict=True)]


@pytest.mark.parametrize("limit", [0.8, 0.5, 0.35])
def test_the_budget_is_met_and_not_undercut(options: SearchSpace, limit: float) -> None:
    device = Device(options)
    found = latency_search.find_plan(latency_search.LatencyProblem(options, device.plan, limit), device)
    truth = device.true(options.remaining_layers(device.plans[int(found.plan.dropped[0])]))
    truth /= device.true(options.remaining_layers(options.unpruned))
    assert 0.92 * limit < truth < 1.01 * limit
    assert device.asked <= latency_search.RANDOM_ARCHITECTURES + latency_search.MAX_ATTEMPTS


def test_what_is_just_within_the_limit_is_not_taken_for_safe(options: SearchSpace) -> None:
    class Close(Device):
        first = True

        def measure_latencies(
            self, plans: Sequence[Surgery], bar: progress.ProgressBar, *, rounds: int = 1
        ) -> list[float]:
            found = super().measure_latencies(plans, bar, rounds=rounds)
            if rounds == latency_search.CONFIRMING_ROUNDS and self.first:
                self.first, found = False, [0.995 * 0.5]
            return found

    device = Close(options)
    found = latency_search.find_plan(latency_search.LatencyProblem(options, device.plan, 0.5), device)
    assert found.latency <= latency_search.MAX_BUDGET_SHARE * 0.5
    assert found.architectures_timed > latency_search.RANDOM_ARCHITECTURES + 1


def test_an_impossible_budget_is_refused_with_what_can_be_reached(options: SearchSpace) -> None:
    device = Device(options)
    with pytest.raises(ToolchainError, match=r"latency budget of 0\.05x cannot be met.*nearest.*0\.[12]\dx"):
        latency_search.find_plan(latency_search.LatencyProblem(options, device.plan, 0.05), device)


def test_random_architectures_are_of_all_sizes_and_the_same_every_time(options: SearchSpace) -> None:
    drawn = latency_search.sample_architectures(options, 20)
    assert drawn == latency_search.sample_architectures(options, 20)
    sizes = [
        profile.total_macs(options.remaining_layers(choice)) / profile.total_macs(options.full_layers)
        for choice in drawn
    ]
    assert min(sizes) < 0.4
    assert max(sizes) > 0.7
    assert {block for choice in drawn for block in choice.dropped_blocks} == {"body.1", "body.2"}


def test_a_block_that_is_gone_takes_its_layers_along(options: SearchSpace) -> None:
    less = width_search.Subnetwork(options.unpruned.kept_channels, frozenset({"body.1"}))
    names = {layer.name for layer in options.full_layers} - {layer.name for layer in options.remaining_layers(less)}
    assert names == {"body.1.wide", "body.1.deep", "body.1.back"}
    assert not any("body.1" in after.dropped_blocks - less.dropped_blocks for after, _ in options.list_reductions(less))


def test_blocks_stay_where_a_limit_allows_it(options: SearchSpace) -> None:
    """Layers that cost something by being there make whole blocks the first to go, which leaves much of a limit."""
    options = dataclasses.replace(options, droppable_blocks=tuple(f"body.{number}" for number in range(4)))
    cost = Device(options).true
    unused, spared = [], 0
    for share in np.linspace(0.35, 0.95, 13):
        limit = share * cost(options.full_layers)
        found, first = (how(options, cost, limit) for how in (width_search.search, width_search._greedy))
        used = cost(options.remaining_layers(found)) / limit
        assert used <= 1
        unused.append(1 - used)
        assert options.lost_importance(found) <= options.lost_importance(first)
        spared += len(found.dropped_blocks) < len(first.dropped_blocks)
    assert max(unused) < 0.07
    assert spared > 5


def test_what_counts_least_for_what_it_saves_goes_first(options: SearchSpace) -> None:
    cheapest = width_search.search(options, profile.total_macs, 0.95 * profile.total_macs(options.full_layers))
    rates = [
        lost / (profile.total_macs(options.full_layers) - profile.total_macs(options.remaining_layers(after)))
        for after, lost in options.list_reductions(options.unpruned)
    ]
    first = options.list_reductions(options.unpruned)[int(np.argmin(rates))][0]
    assert (
        all(a <= b for a, b in zip(cheapest.kept_channels, first.kept_channels, strict=True))
        or first.dropped_blocks <= cheapest.dropped_blocks
    )
