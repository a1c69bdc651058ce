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
from toolchain.pruning.groups import Group

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

    @property
    def narrowest(self) -> Choice:
        """As little as may be left of every group, and no block."""
        return Choice(tuple(self.possible(index)[0] for index in range(len(self.groups))), frozenset(self.blocks))

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
        for index in range(len(self.groups)):
            narrower = [width for width in self.possible(index) if width < choice.kept[index]]
            if not narrower:
                continue
            lower = narrower[-1]
            if self._gone(index, choice):
                continue
            kept = (*choice.kept[:index], lower, *choice.kept[index + 1 :])
            found.append((replace(choice, kept=kept), self.worth(index, choice.kept[index], lower)))
        for block in self.blocks:
            if block not in choice.dropped:
                lost = self._worth_of_block(block, choice)
                found.append((replace(choice, dropped=choice.dropped | {block}), lost))
        return found

    def steps_back(self, choice: Choice) -> list[tuple[Choice, float]]:
        """What may come back, with the importance that is regained: each group one step wider, each block that is gone."""
        found = []
        for index, width in enumerate(choice.kept):
            wider = [one for one in self.possible(index) if one > width]
            if wider and not self._gone(index, choice):
                kept = (*choice.kept[:index], wider[0], *choice.kept[index + 1 :])
                found.append((replace(choice, kept=kept), self.worth(index, wider[0], width)))
        for block in choice.dropped:
            back = replace(choice, dropped=choice.dropped - {block})
            found.append((back, self._worth_of_block(block, back)))
        return found

    def _gone(self, index: int, choice: Choice) -> bool:
        """Whether a group went with a block that was dropped."""
        return any(
            all(inside(member.module, block) for member in self.groups[index].members) for block in choice.dropped
        )

    def _worth_of_block(self, block: str, choice: Choice) -> float:
        """Importance of all that is inside of a block and nowhere else."""
        return sum(
            self.worth(index, choice.kept[index], 0)
            for index, group in enumerate(self.groups)
            if all(inside(member.module, block) for member in group.members)
        )

    def possible(self, index: int) -> list[int]:
        """Widths that a group may have, the narrowest first, the whole last: multiples of the alignment below it."""
        channels = self.groups[index].channels
        least = max(1, math.ceil(channels * (1 - self.max_share) / self.alignment)) * self.alignment
        return [*range(least, channels, self.alignment), channels]

    def worth(self, index: int, kept: int, lower: int) -> float:
        """Importance of a group's channels between two widths, counted in every layer that sees them."""
        channels = self.groups[index].channels
        return float(self.ascending[index][channels - kept : channels - lower].sum()) * self.groups[index].layers

    def lost(self, choice: Choice) -> float:
        """What an architecture loses of the whole model's importance."""
        now, total = self.whole, 0.0
        for block in sorted(choice.dropped):
            total += self._worth_of_block(block, now)
            now = replace(now, dropped=now.dropped | {block})
        for index, width in enumerate(choice.kept):
            if not self._gone(index, choice):
                total += self.worth(index, self.groups[index].channels, width)
        return total


def narrowed(options: Options, cost: Cost, limit: float) -> Choice:
    """The choice that costs at most `limit`, by taking what loses the least importance for what it saves, step by step.

    A block that went early may leave much of the limit unused in the end, for which it and narrower layers could have
    stayed: each is brought back in turn, and stays where that loses less on the whole.

    Raises:
        ToolchainError: the limit cannot be reached; `Unreachable` says what can.
    """
    best = _greedy(options, cost, limit)
    while best.dropped:
        found = []
        for block in sorted(best.dropped):
            others = tuple(sorted(best.dropped - {block}))  # no further one may go in its place
            with suppress(Unreachable):
                found.append(_greedy(replace(options, blocks=others), cost, limit))
        if not found or options.lost(other := min(found, key=options.lost)) >= options.lost(best):
            break
        best = other
    return best


def _greedy(options: Options, cost: Cost, limit: float) -> Choice:
    choice = options.whole
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
    return _refilled(options, cost, limit, choice)


def _refilled(options: Options, cost: Cost, limit: float, choice: Choice) -> Choice:
    """What a last, coarse step left of the limit is given back to where it is worth most."""
    while True:
        possible = [
            (gained, wider)
            for wider, gained in options.steps_back(choice)
            if gained > 0 and cost(options.layers(wider)) <= limit
        ]
        if not possible:
            return choice
        choice = max(possible, key=lambda one: one[0])[1]


class Unreachable(ToolchainError):
    """A limit below what the narrowest architecture costs."""

    def __init__(self, least: float) -> None:
        super().__init__(f"the narrowest architecture costs {least:g}")
        self.least = least


def inside(module: str, block: str) -> bool:
    """Whether a module is a block or part of it."""
    return module == block or module.startswith(f"{block}.")
