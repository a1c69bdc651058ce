"""The width of each pruning group after each round of pruning and recovery, on the way to a plan.

Pruning a little and training in between loses less accuracy than pruning all at once (Molchanov et al., arXiv
1611.06440), because the remaining channels have adapted before they are ranked again. Every round keeps the same share
of each width, so that no round takes much more of the network than the others. The plan fixes the final widths and the
dropped blocks.
"""

from collections.abc import Mapping, Sequence

from toolchain.core.errors import ToolchainError
from toolchain.pruning import width_search
from toolchain.pruning.groups import ChannelRole, CoupledLayer, PruningGroup
from toolchain.pruning.surgery import Surgery
from toolchain.pruning.width_search import SearchSpace, Subnetwork

ChannelPosition = tuple[str, ChannelRole, int]  # layer, output or input side, index in the original model's numbering


def choose_widths(
    space: SearchSpace, original_groups: Sequence[PruningGroup], plan: Surgery, applied: Surgery, share: float
) -> Subnetwork:
    """Return the widths and dropped blocks at the end of a round.

    Args:
        space: search space of the model as it is now.
        original_groups: pruning groups of the original model.
        plan: the final architecture, for the original model.
        applied: all surgery so far, for the original model.
        share: share of the way to the plan at which this round ends, 1 in the last. Blocks are dropped in the first
            round, since there is no half of one; and the sooner they go, the longer the rest adapts to their absence.

    Raises:
        ToolchainError: a group that the plan narrows is no longer among the groups of the model.
    """
    final_widths = [_final_width(group, plan) for group in original_groups]
    group_numbers = _number_channels(original_groups)
    numbers = [_original_group(group, group_numbers, applied) for group in space.groups]
    lost = [
        group.name
        for number, (group, final) in enumerate(zip(original_groups, final_widths, strict=True))
        if final not in (None, group.channels) and number not in numbers
    ]
    if lost:
        raise ToolchainError(
            f"this model cannot be pruned in rounds: the channels of {lost[0]} can no longer be traced after the first "
            "of them were removed. Set [prune] rounds = 1"
        )
    widths = []
    for group, number in zip(space.groups, numbers, strict=True):
        final = None if number is None else final_widths[number]
        original = group.channels if number is None else original_groups[number].channels
        widths.append(group.channels if final is None else interpolate_width(original, final, share, space.alignment))
    return Subnetwork(tuple(widths), frozenset(plan.dropped) - frozenset(applied.dropped))


def replay_widths(space: SearchSpace, plan: Surgery) -> Subnetwork:
    """Return the widths and dropped blocks of a plan that was made for other weights of the same model."""
    return choose_widths(space, space.groups, plan, Surgery(), 1.0)


def interpolate_width(whole: int, final: int, share: float, alignment: int) -> int:
    """Return a group's width at `share` of the way from `whole` to `final`, a multiple of the alignment.

    Equal shares divide the width by equal factors.
    """
    if share >= 1 or whole == final:
        return final
    ideal: float = whole * (final / whole) ** share
    return min(whole, max(final, round(ideal / alignment) * alignment))


def _final_width(group: PruningGroup, plan: Surgery) -> int | None:
    """Return how many of a group's channels the plan keeps; None where the group is in a dropped block."""
    for layer in group.coupled_layers:
        if any(width_search.is_inside(layer.module_name, block) for block in plan.dropped):
            continue
        kept = _kept_indices(layer, plan)
        return group.channels if kept is None else len({row[0] for row in layer.channel_indices}.intersection(kept))
    return None


def _kept_indices(layer: CoupledLayer, plan: Surgery) -> Sequence[int] | None:
    """Return the indices that the plan keeps on this side of the layer; None: all."""
    return plan.keep.get(f"{layer.module_name}.weight", {}).get(0 if layer.role == "out" else 1)


def _number_channels(groups: Sequence[PruningGroup]) -> Mapping[ChannelPosition, int]:
    """Return the number of the group that each channel position belongs to."""
    return {
        (layer.module_name, layer.role, index): number
        for number, group in enumerate(groups)
        for layer in group.coupled_layers
        for row in layer.channel_indices
        for index in row
    }


def _original_group(group: PruningGroup, group_numbers: Mapping[ChannelPosition, int], applied: Surgery) -> int | None:
    """Return the number of the original model's group that this one is the remainder of."""
    layer = group.coupled_layers[0]
    kept, index = _kept_indices(layer, applied), layer.channel_indices[0][0]
    return group_numbers.get((layer.module_name, layer.role, index if kept is None else kept[index]))
