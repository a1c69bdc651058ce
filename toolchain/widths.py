"""How wide each group of channels is to be and which residual blocks are to go: a greedy search over what costs least.

The search is told what an architecture costs, in multiply-accumulates or in predicted milliseconds, and what each
channel is worth. Nothing is timed and nothing is cut here.
"""

import math
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

from torch import Tensor

from toolchain.errors import ToolchainError
from toolchain.groups import Group
from toolchain.values import Layer

Cost = Callable[[Sequence[Layer]], float]


@dataclass(frozen=True)
class Choice:
    """An architecture: channels kept of each group, and the residual blocks that are gone."""

    kept: tuple[int, ...]
    dropped: frozenset[str] = frozenset()


@dataclass(frozen=True)
class Options:
    """What may be cut of a model, and what it is worth."""

    sizes: tuple[Layer, ...]  # of the whole model
    groups: tuple[Group, ...]
    ranked: tuple[Tensor, ...]  # each group's channels, the least important first
    ascending: tuple[Tensor, ...]  # their importance, in that order
    blocks: tuple[str, ...]  # residual blocks, which can be left out
    alignment: int
    max_share: float  # of a group's channels that may go

    @property
    def whole(self) -> Choice:
        """Nothing cut."""
        return Choice(tuple(group.channels for group in self.groups))

    @cached_property
    def _touching(self) -> Mapping[str, list[tuple[int, float, bool]]]:
        """By layer: which group, which share of that side of the layer it covers, whether it is the output side."""
        sizes, found = (
            {layer.name: layer for layer in self.sizes},
            defaultdict[str, list[tuple[int, float, bool]]](list),
        )
        for index, group in enumerate(self.groups):
            for member in group.members:
                layer = sizes.get(member.module)
                if layer is not None:
                    out = member.side == "out"
                    covered = sum(len(row) for row in member.positions)
                    found[layer.name].append((index, covered / (layer.outputs if out else layer.inputs), out))
        return found

    def layers(self, choice: Choice) -> list[Layer]:
        """Sizes of the layers that are left."""
        found = []
        for layer in self.sizes:
            if any(inside(layer.name, block) for block in choice.dropped):
                continue
            inputs = outputs = 1.0
            for index, covered, out in self._touching.get(layer.name, ()):
                gone = covered * (1 - choice.kept[index] / self.groups[index].channels)
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

    def steps(self, choice: Choice) -> list[tuple[Choice, float]]:
        """What may go next, with the importance that is lost: each group one step narrower, each block that is left."""
        found = []
        for index, group in enumerate(self.groups):
            lower = (choice.kept[index] - 1) // self.alignment * self.alignment
            if lower < max(self.alignment, math.ceil(group.channels * (1 - self.max_share))):
                continue
            if all(any(inside(m.module, block) for block in choice.dropped) for m in group.members):
                continue  # gone with its block
            kept = (*choice.kept[:index], lower, *choice.kept[index + 1 :])
            found.append((replace(choice, kept=kept), self.worth(index, choice.kept[index], lower)))
        for block in self.blocks:
            if block not in choice.dropped:
                lost = sum(
                    self.worth(index, choice.kept[index], 0)
                    for index, group in enumerate(self.groups)
                    if all(inside(member.module, block) for member in group.members)
                )
                found.append((replace(choice, dropped=choice.dropped | {block}), lost))
        return found

    def worth(self, index: int, kept: int, lower: int) -> float:
        """Importance of a group's channels between two widths, counted in every layer that sees them."""
        channels = self.groups[index].channels
        return float(self.ascending[index][channels - kept : channels - lower].sum()) * self.groups[index].layers


def narrowed(options: Options, cost: Cost, limit: float, start: Choice | None = None) -> Choice:
    """The choice that costs at most `limit`, by taking what loses the least importance for what it saves, step by step.

    Raises:
        ToolchainError: the limit cannot be reached; `Unreachable` says what can.
    """
    choice = start or options.whole
    now = cost(options.layers(choice))
    while now > limit:
        best: tuple[float, Choice, float] | None = None
        for candidate, lost in options.steps(choice):
            after = cost(options.layers(candidate))
            rate = lost / max(now - after, 1e-12 * now)
            if after < now and (best is None or rate < best[0]):
                best = (rate, candidate, after)
        if best is None:
            raise Unreachable(now)
        _, choice, now = best
    return choice


class Unreachable(ToolchainError):
    """A limit below what the narrowest architecture costs."""

    def __init__(self, least: float) -> None:
        super().__init__(f"the narrowest architecture costs {least:g}")
        self.least = least


def inside(module: str, block: str) -> bool:
    """Whether a module is a block or part of it."""
    return module == block or module.startswith(f"{block}.")
