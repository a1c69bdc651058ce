"""How wide each group of channels is after each of several prune-recover rounds on the way to a plan.

Cutting little and training in between loses less than cutting all at once (Molchanov et al., arXiv 1611.06440): what is
left has adapted before it is ranked again. Every round leaves the same share of each width, so that no single one
takes more of a network than the others. Where the rounds end, in width and in blocks, the plan has decided.
"""

from collections.abc import Mapping, Sequence

from toolchain.core.errors import ToolchainError
from toolchain.pruning import width_search
from toolchain.pruning.groups import ChannelRole, CoupledLayer, PruningGroup
from toolchain.pruning.surgery import Surgery
from toolchain.pruning.width_search import SearchSpace, Subnetwork

ChannelPosition = tuple[str, ChannelRole, int]  # layer, side, index in the whole model's numbering


def choose_widths(
    options: SearchSpace, whole: Sequence[PruningGroup], plan: Surgery, done: Surgery, share: float
) -> Subnetwork:
    """What stays of the groups of a model that is on its way.

    Args:
        options: of the model as it is.
        whole: the groups of the whole model.
        plan: where the way leads to.
        done: what has gone so far, as a plan for the whole model.
        share: of the way that this round ends at, 1 at the end. Blocks go in the first round: half of one cannot be
            cut, and the longer the rest does without them, the better it is used to it.

    Raises:
        ToolchainError: a group of the whole model that is to be cut is none of the model as it is.
    """
    goals = [_goal(group, plan) for group in whole]
    owner = _owners(whole)
    numbers = [_owner(group, owner, done) for group in options.groups]
    lost = [whole[i].name for i, goal in enumerate(goals) if goal not in (None, whole[i].channels) and i not in numbers]
    if lost:
        raise ToolchainError(
            f"the channels of {lost[0]} can no longer be traced now that some are gone, so this model cannot be pruned "
            "in rounds; set [prune] rounds = 1"
        )
    kept = []
    for group, number in zip(options.groups, numbers, strict=True):
        goal = None if number is None else goals[number]
        full = group.channels if number is None else whole[number].channels
        kept.append(group.channels if goal is None else interpolate_width(full, goal, share, options.alignment))
    return Subnetwork(tuple(kept), frozenset(plan.dropped) - frozenset(done.dropped))


def replay_widths(options: SearchSpace, plan: Surgery) -> Subnetwork:
    """The widths and blocks of a plan that was made for other weights of the same model."""
    return choose_widths(options, options.groups, plan, Surgery(), 1.0)


def interpolate_width(whole: int, final: int, share: float, alignment: int) -> int:
    """Channels of a group when `share` of the way from `whole` to `final` is gone, in multiples of the alignment."""
    if share >= 1 or whole == final:
        return final
    aimed: float = whole * (final / whole) ** share
    return min(whole, max(final, round(aimed / alignment) * alignment))


def _goal(group: PruningGroup, plan: Surgery) -> int | None:
    """How many of a group's channels the plan keeps; None where it went with a block."""
    for member in group.coupled_layers:
        if any(width_search.is_inside(member.module_name, block) for block in plan.dropped):
            continue
        kept = _kept(member, plan)
        return group.channels if kept is None else len({row[0] for row in member.channel_indices}.intersection(kept))
    return None


def _kept(member: CoupledLayer, plan: Surgery) -> Sequence[int] | None:
    """Kept indices of the side of a layer that a group is on; None: all."""
    return plan.keep.get(f"{member.module_name}.weight", {}).get(0 if member.role == "out" else 1)


def _owners(whole: Sequence[PruningGroup]) -> Mapping[ChannelPosition, int]:
    return {
        (member.module_name, member.role, index): number
        for number, group in enumerate(whole)
        for member in group.coupled_layers
        for row in member.channel_indices
        for index in row
    }


def _owner(group: PruningGroup, owner: Mapping[ChannelPosition, int], done: Surgery) -> int | None:
    """Which group of the whole model this is what is left of."""
    member = group.coupled_layers[0]
    kept, place = _kept(member, done), member.channel_indices[0][0]
    return owner.get((member.module_name, member.role, place if kept is None else kept[place]))
