"""Greedy search for the width of each pruning group and the residual blocks to drop, within a limit on cost.

The caller gives the cost of an architecture, in multiply-accumulates or predicted milliseconds, and the importance of each
channel. Nothing is timed and nothing is pruned here.
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
    """An architecture: the number of channels kept in each group, and the residual blocks dropped."""

    kept_channels: tuple[int, ...]
    dropped_blocks: frozenset[str] = frozenset()


@dataclass(frozen=True)
class _Coupling:
    """A group's share of one side of a layer."""

    group: int
    share: float  # of the channels on that side
    outputs: bool  # whether it is the output side


@dataclass(frozen=True)
class SearchSpace:
    """The channels and blocks that may be removed from a model, and their importance."""

    full_layers: tuple[Layer, ...]  # of the whole model
    groups: tuple[PruningGroup, ...]
    channel_order: tuple[Tensor, ...]  # each group's channels, the least important first
    sorted_importance: tuple[Tensor, ...]  # their importance, in that order
    droppable_blocks: tuple[str, ...]  # residual blocks
    alignment: int  # pruned widths are multiples of it
    max_pruned_share: float  # of a group's channels, 0..1

    @property
    def unpruned(self) -> Subnetwork:
        """The whole model."""
        return Subnetwork(tuple(group.channels for group in self.groups))

    @property
    def narrowest(self) -> Subnetwork:
        """Every group at its smallest width, and every droppable block dropped."""
        return Subnetwork(
            tuple(self.allowed_widths(index)[0] for index in range(len(self.groups))), frozenset(self.droppable_blocks)
        )

    @cached_property
    def _couplings(self) -> Mapping[str, list[_Coupling]]:
        """By layer: the groups on each of its sides."""
        layers = {layer.name: layer for layer in self.full_layers}
        couplings = defaultdict[str, list[_Coupling]](list)
        for index, group in enumerate(self.groups):
            for coupled in group.coupled_layers:
                layer = layers.get(coupled.module_name)
                if layer is not None:
                    outputs = coupled.role == "out"
                    covered = sum(len(row) for row in coupled.channel_indices)
                    share = covered / (layer.outputs if outputs else layer.inputs)
                    couplings[layer.name].append(_Coupling(index, share, outputs))
        return couplings

    def remaining_layers(self, subnetwork: Subnetwork) -> list[Layer]:
        """Return the sizes of the layers that remain."""
        remaining = []
        for layer in self.full_layers:
            if any(is_inside(layer.name, block) for block in subnetwork.dropped_blocks):
                continue
            inputs = outputs = 1.0  # shares that remain
            for coupling in self._couplings.get(layer.name, ()):
                kept = subnetwork.kept_channels[coupling.group] / self.groups[coupling.group].channels
                removed = coupling.share * (1 - kept)
                inputs, outputs = (inputs, outputs - removed) if coupling.outputs else (inputs - removed, outputs)
            if layer.kind == "depthwise":
                inputs, share = outputs, outputs
            else:
                share = inputs * outputs
            weights = layer.macs / layer.sites
            bias = layer.parameters - weights
            remaining.append(
                replace(
                    layer, inputs=round(layer.inputs * inputs), outputs=round(layer.outputs * outputs),
                    macs=round(layer.macs * share), parameters=round(weights * share + bias * outputs),
                )
            )  # fmt: skip
        return remaining

    def list_reductions(self, subnetwork: Subnetwork) -> list[tuple[Subnetwork, float]]:
        """Return the possible next reductions with the importance each loses: a group one step narrower, a block less."""
        reductions = []
        for index, width in enumerate(subnetwork.kept_channels):
            narrower = [smaller for smaller in self.allowed_widths(index) if smaller < width]
            if narrower and not self._is_dropped(index, subnetwork):
                lost = self.importance_between(index, width, narrower[-1])
                reductions.append((_with_width(subnetwork, index, narrower[-1]), lost))
        for block in self.droppable_blocks:
            if block not in subnetwork.dropped_blocks:
                lost = self._block_importance(block, subnetwork)
                dropped = subnetwork.dropped_blocks | {block}
                reductions.append((replace(subnetwork, dropped_blocks=dropped), lost))
        return reductions

    def list_restorations(self, subnetwork: Subnetwork) -> list[tuple[Subnetwork, float]]:
        """Return the possible restorations with the importance each regains: a group one step wider, a block more."""
        restorations = []
        for index, width in enumerate(subnetwork.kept_channels):
            wider = [larger for larger in self.allowed_widths(index) if larger > width]
            if wider and not self._is_dropped(index, subnetwork):
                gained = self.importance_between(index, wider[0], width)
                restorations.append((_with_width(subnetwork, index, wider[0]), gained))
        for block in subnetwork.dropped_blocks:
            restored = replace(subnetwork, dropped_blocks=subnetwork.dropped_blocks - {block})
            restorations.append((restored, self._block_importance(block, restored)))
        return restorations

    def _is_dropped(self, index: int, subnetwork: Subnetwork) -> bool:
        """Return whether a group lies entirely inside a dropped block."""
        return any(self._is_group_inside(index, block) for block in subnetwork.dropped_blocks)

    def _is_group_inside(self, index: int, block: str) -> bool:
        return all(is_inside(layer.module_name, block) for layer in self.groups[index].coupled_layers)

    def _block_importance(self, block: str, subnetwork: Subnetwork) -> float:
        """Return the importance of the groups that lie entirely inside a block."""
        return sum(
            self.importance_between(index, width, 0)
            for index, width in enumerate(subnetwork.kept_channels)
            if self._is_group_inside(index, block)
        )

    def allowed_widths(self, index: int) -> list[int]:
        """Return the widths that a group may have, the narrowest first: multiples of the alignment, then the whole width."""
        channels = self.groups[index].channels
        least = max(1, math.ceil(channels * (1 - self.max_pruned_share) / self.alignment)) * self.alignment
        return [*range(least, channels, self.alignment), channels]

    def importance_between(self, index: int, kept: int, lower: int) -> float:
        """Return the importance of a group's channels between two widths, counted once for every coupled layer."""
        channels = self.groups[index].channels
        return (
            float(self.sorted_importance[index][channels - kept : channels - lower].sum())
            * self.groups[index].layer_count
        )

    def lost_importance(self, subnetwork: Subnetwork) -> float:
        """Return the importance that an architecture loses against the whole model."""
        remaining, total = self.unpruned, 0.0
        for block in sorted(subnetwork.dropped_blocks):
            total += self._block_importance(block, remaining)
            remaining = replace(remaining, dropped_blocks=remaining.dropped_blocks | {block})
        for index, width in enumerate(subnetwork.kept_channels):
            if not self._is_dropped(index, subnetwork):
                total += self.importance_between(index, self.groups[index].channels, width)
        return total


def _with_width(subnetwork: Subnetwork, index: int, width: int) -> Subnetwork:
    kept = subnetwork.kept_channels
    return replace(subnetwork, kept_channels=(*kept[:index], width, *kept[index + 1 :]))


def search(space: SearchSpace, cost: CostFunction, limit: float) -> Subnetwork:
    """Return an architecture that costs at most `limit`, by repeatedly taking the least importance lost for cost saved.

    A block that was dropped early may leave much of the limit unused in the end, where narrower layers could have kept
    it. So each dropped block is restored in turn, and stays where the architecture then loses less importance.

    Args:
        space: what may be removed.
        cost: the cost of an architecture's layers.
        limit: largest cost allowed, in the unit of `cost`.

    Raises:
        LimitUnreachable: the limit is below the cost of the narrowest architecture, which the error carries.
    """
    best = _greedy(space, cost, limit)
    while best.dropped_blocks:
        alternatives = []
        for block in sorted(best.dropped_blocks):
            droppable = tuple(sorted(best.dropped_blocks - {block}))  # no other block may be dropped in its place
            with suppress(LimitUnreachable):
                alternatives.append(_greedy(replace(space, droppable_blocks=droppable), cost, limit))
        if not alternatives:
            break
        alternative = min(alternatives, key=space.lost_importance)
        if space.lost_importance(alternative) >= space.lost_importance(best):
            break
        best = alternative
    return best


def _greedy(space: SearchSpace, cost: CostFunction, limit: float) -> Subnetwork:
    """Reduce the whole model step by step until it costs at most `limit`, then restore what still fits."""
    subnetwork = space.unpruned
    current = cost(space.remaining_layers(subnetwork))
    while current > limit:
        best: tuple[float, Subnetwork, float] | None = None
        for candidate, lost in space.list_reductions(subnetwork):
            reduced = cost(space.remaining_layers(candidate))
            rate = lost / max(current - reduced, 1e-12 * current)
            if reduced < current and (best is None or rate < best[0]):
                best = (rate, candidate, reduced)
        if best is None:
            raise LimitUnreachable(current)
        _, subnetwork, current = best
    return _restore_within(space, cost, limit, subnetwork)


def _restore_within(space: SearchSpace, cost: CostFunction, limit: float, subnetwork: Subnetwork) -> Subnetwork:
    """Spend what the last, coarse step left of the limit, on the most important restorations."""
    while True:
        affordable = [
            (gained, restored)
            for restored, gained in space.list_restorations(subnetwork)
            if gained > 0 and cost(space.remaining_layers(restored)) <= limit
        ]
        if not affordable:
            return subnetwork
        subnetwork = max(affordable, key=lambda restoration: restoration[0])[1]


class LimitUnreachable(ToolchainError):
    """The limit is below the cost of the narrowest architecture."""

    def __init__(self, least: float) -> None:
        """Carry the lowest cost that was reached, `least`."""
        super().__init__(f"the narrowest architecture costs {least:g}, more than the limit")
        self.lowest_cost = least


def is_inside(module: str, block: str) -> bool:
    """Return whether a module is the block or part of it."""
    return module == block or module.startswith(f"{block}.")
