"""How wide each group of channels is to be and which residual blocks are to go: a greedy search over what costs least.

The search is told what an architecture costs, in multiply-accumulates or in predicted milliseconds, and what each
channel is worth. Nothing is timed and nothing is cut here.
"""

import math
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cached_property

from torch import Tensor

from toolchain.core.errors import ToolchainError
from toolchain.models.profile import Layer
from toolchain.pruning.groups import PruningGroup

CostFunction = Callable[[Sequence[Layer]], float]


@dataclass(frozen=True)
class Subnetwork:
    """An architecture: channels kept of each group, and the residual blocks that are gone."""

    kept_channels: tuple[int, ...]
    dropped_blocks: frozenset[str] = frozenset()


@dataclass(frozen=True)
class SearchSpace:
    """What may be cut of a model, and what it is worth."""

    full_layers: tuple[Layer, ...]  # of the whole model
    groups: tuple[PruningGroup, ...]
    channel_order: tuple[Tensor, ...]  # each group's channels, the least important first
    sorted_importance: tuple[Tensor, ...]  # their importance, in that order
    droppable_blocks: tuple[str, ...]  # residual blocks, which can be left out
    alignment: int
    max_pruned_share: float  # of a group's channels that may go

    @property
    def unpruned(self) -> Subnetwork:
        """Nothing cut."""
        return Subnetwork(tuple(group.channels for group in self.groups))

    @property
    def narrowest(self) -> Subnetwork:
        """As little as may be left of every group, and no block."""
        return Subnetwork(
            tuple(self.allowed_widths(index)[0] for index in range(len(self.groups))), frozenset(self.droppable_blocks)
        )

    @cached_property
    def _touching(self) -> Mapping[str, list[tuple[int, float, bool]]]:
        """By layer: which group, which share of that side of the layer it covers, whether it is the output side."""
        sizes, found = (
            {layer.name: layer for layer in self.full_layers},
            defaultdict[str, list[tuple[int, float, bool]]](list),
        )
        for index, group in enumerate(self.groups):
            for member in group.coupled_layers:
                layer = sizes.get(member.module_name)
                if layer is not None:
                    out = member.role == "out"
                    covered = sum(len(row) for row in member.channel_indices)
                    found[layer.name].append((index, covered / (layer.outputs if out else layer.inputs), out))
        return found

    def remaining_layers(self, choice: Subnetwork) -> list[Layer]:
        """Sizes of the layers that are left."""
        found = []
        for layer in self.full_layers:
            if any(is_inside(layer.name, block) for block in choice.dropped_blocks):
                continue
            inputs = outputs = 1.0
            for index, covered, out in self._touching.get(layer.name, ()):
                gone = covered * (1 - choice.kept_channels[index] / self.groups[index].channels)
                inputs, outputs = (inputs, outputs - gone) if out else (inputs - gone, outputs)
            if layer.kind == "depthwise":
                inputs, share = outputs, outputs
            else:
                share = inputs * outputs
            weights = layer.macs / layer.sites
            bias = layer.parameters - weights
            found.append(
                replace(
                    layer, inputs=round(layer.inputs * inputs), outputs=round(layer.outputs * outputs),
                    macs=round(layer.macs * share), parameters=round(weights * share + bias * outputs),
                )
            )  # fmt: skip
        return found

    def list_reductions(self, choice: Subnetwork) -> list[tuple[Subnetwork, float]]:
        """What may go next, with the importance that is lost: each group one step narrower, each block that is left."""
        found = []
        for index in range(len(self.groups)):
            narrower = [width for width in self.allowed_widths(index) if width < choice.kept_channels[index]]
            if not narrower:
                continue
            lower = narrower[-1]
            if self._gone(index, choice):
                continue
            kept = (*choice.kept_channels[:index], lower, *choice.kept_channels[index + 1 :])
            found.append(
                (
                    replace(choice, kept_channels=kept),
                    self.importance_between(index, choice.kept_channels[index], lower),
                )
            )
        for block in self.droppable_blocks:
            if block not in choice.dropped_blocks:
                lost = self._worth_of_block(block, choice)
                found.append((replace(choice, dropped_blocks=choice.dropped_blocks | {block}), lost))
        return found

    def list_restorations(self, choice: Subnetwork) -> list[tuple[Subnetwork, float]]:
        """What may come back, with the importance that is regained: each group one step wider, each block that is gone."""
        found = []
        for index, width in enumerate(choice.kept_channels):
            wider = [one for one in self.allowed_widths(index) if one > width]
            if wider and not self._gone(index, choice):
                kept = (*choice.kept_channels[:index], wider[0], *choice.kept_channels[index + 1 :])
                found.append((replace(choice, kept_channels=kept), self.importance_between(index, wider[0], width)))
        for block in choice.dropped_blocks:
            back = replace(choice, dropped_blocks=choice.dropped_blocks - {block})
            found.append((back, self._worth_of_block(block, back)))
        return found

    def _gone(self, index: int, choice: Subnetwork) -> bool:
        """Whether a group went with a block that was dropped."""
        return any(
            all(is_inside(member.module_name, block) for member in self.groups[index].coupled_layers)
            for block in choice.dropped_blocks
        )

    def _worth_of_block(self, block: str, choice: Subnetwork) -> float:
        """Importance of all that is inside of a block and nowhere else."""
        return sum(
            self.importance_between(index, choice.kept_channels[index], 0)
            for index, group in enumerate(self.groups)
            if all(is_inside(member.module_name, block) for member in group.coupled_layers)
        )

    def allowed_widths(self, index: int) -> list[int]:
        """Widths that a group may have, the narrowest first, the whole last: multiples of the alignment below it."""
        channels = self.groups[index].channels
        least = max(1, math.ceil(channels * (1 - self.max_pruned_share) / self.alignment)) * self.alignment
        return [*range(least, channels, self.alignment), channels]

    def importance_between(self, index: int, kept: int, lower: int) -> float:
        """Importance of a group's channels between two widths, counted in every layer that sees them."""
        channels = self.groups[index].channels
        return (
            float(self.sorted_importance[index][channels - kept : channels - lower].sum())
            * self.groups[index].layer_count
        )

    def lost_importance(self, choice: Subnetwork) -> float:
        """What an architecture loses of the whole model's importance."""
        now, total = self.unpruned, 0.0
        for block in sorted(choice.dropped_blocks):
            total += self._worth_of_block(block, now)
            now = replace(now, dropped_blocks=now.dropped_blocks | {block})
        for index, width in enumerate(choice.kept_channels):
            if not self._gone(index, choice):
                total += self.importance_between(index, self.groups[index].channels, width)
        return total


def search(options: SearchSpace, cost: CostFunction, limit: float) -> Subnetwork:
    """The choice that costs at most `limit`, by taking what loses the least importance for what it saves, step by step.

    A block that went early may leave much of the limit unused in the end, for which it and narrower layers could have
    stayed: each is brought back in turn, and stays where that loses less on the whole.

    Raises:
        ToolchainError: the limit cannot be reached; `Unreachable` says what can.
    """
    best = _greedy(options, cost, limit)
    while best.dropped_blocks:
        found = []
        for block in sorted(best.dropped_blocks):
            others = tuple(sorted(best.dropped_blocks - {block}))  # no further one may go in its place
            with suppress(LimitUnreachable):
                found.append(_greedy(replace(options, droppable_blocks=others), cost, limit))
        if not found or options.lost_importance(
            other := min(found, key=options.lost_importance)
        ) >= options.lost_importance(best):
            break
        best = other
    return best


def _greedy(options: SearchSpace, cost: CostFunction, limit: float) -> Subnetwork:
    choice = options.unpruned
    now = cost(options.remaining_layers(choice))
    while now > limit:
        best: tuple[float, Subnetwork, float] | None = None
        for candidate, lost in options.list_reductions(choice):
            after = cost(options.remaining_layers(candidate))
            rate = lost / max(now - after, 1e-12 * now)
            if after < now and (best is None or rate < best[0]):
                best = (rate, candidate, after)
        if best is None:
            raise LimitUnreachable(now)
        _, choice, now = best
    return _refilled(options, cost, limit, choice)


def _refilled(options: SearchSpace, cost: CostFunction, limit: float, choice: Subnetwork) -> Subnetwork:
    """What a last, coarse step left of the limit is given back to where it is worth most."""
    while True:
        possible = [
            (gained, wider)
            for wider, gained in options.list_restorations(choice)
            if gained > 0 and cost(options.remaining_layers(wider)) <= limit
        ]
        if not possible:
            return choice
        choice = max(possible, key=lambda one: one[0])[1]


class LimitUnreachable(ToolchainError):
    """A limit below what the narrowest architecture costs."""

    def __init__(self, least: float) -> None:
        super().__init__(f"the narrowest architecture costs {least:g}")
        self.lowest_cost = least


def is_inside(module: str, block: str) -> bool:
    """Whether a module is a block or part of it."""
    return module == block or module.startswith(f"{block}.")
