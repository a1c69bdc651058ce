"""The search space of pruning: which channels and blocks of a model may be removed, and how important each is.

Also the plan for a ratio of multiply-accumulates, which needs nothing but this space and no timing.
"""

from collections.abc import Mapping, Sequence
from fnmatch import fnmatch

import torch
from torch import Tensor, nn

from toolchain.config.recipe import PruneSpec
from toolchain.core import progress
from toolchain.core.errors import ToolchainError
from toolchain.models.profile import Layer, measure_layers, total_macs
from toolchain.pruning import groups, importance, width_search
from toolchain.pruning.gradients import GradientMoments
from toolchain.pruning.groups import PruningGroup
from toolchain.pruning.surgery import Surgery, build

NOTHING_TO_PRUNE = "It goes on unpruned, to be quantized; `toolchain check-model` says what keeps the channels"


def plan_for_ratio(
    model: nn.Module, image: Tensor, *, head: str, spec: PruneSpec, alignment: int, criterion: importance.Criterion,
    gradients: Mapping[str, GradientMoments] | None = None,
) -> Surgery:  # fmt: skip
    """Plan the surgery that removes `spec.ratio` of the multiply-accumulates at the least loss of importance.

    A model of which nothing can be removed keeps all channels, and goes on to be quantized.

    Args: as for `build_search_space`.

    Raises:
        ToolchainError: as for `build_search_space`, or the ratio cannot be reached.
    """
    if not spec.ratio:
        return Surgery()
    try:
        space = build_search_space(
            model, image, head=head, spec=spec, alignment=alignment, criterion=criterion, gradients=gradients
        )
    except groups.UntraceableError as reason:
        progress.log(f"prune: {reason}. {NOTHING_TO_PRUNE}")
        return Surgery()
    total = total_macs(space.full_layers)
    try:
        subnetwork = width_search.search(space, total_macs, (1 - spec.ratio) * total)
    except width_search.LimitUnreachable as reason:
        if reason.lowest_cost >= total:
            progress.log(f"prune: no layer can lose channels in multiples of {alignment}. {NOTHING_TO_PRUNE}")
            return Surgery()
        raise ToolchainError(
            f"[prune] ratio = {spec.ratio} cannot be reached with widths in multiples of {alignment}: "
            f"the most is {1 - reason.lowest_cost / total:.2f}. Lower ratio, raise max_share, or protect fewer layers"
        ) from reason
    return build(model, space, subnetwork)


def build_search_space(
    model: nn.Module, image: Tensor, *, head: str, spec: PruneSpec, alignment: int, criterion: importance.Criterion,
    gradients: Mapping[str, GradientMoments] | None = None, blocks: Sequence[str] = (),
) -> width_search.SearchSpace:  # fmt: skip
    """Return the channels and blocks that may be removed from a model, with their importance.

    A channel's importance is a share (`importance.compute_shares`), counted once for every layer it is coupled to, so a
    residual stream is more important than the inside of one block. Groups no wider than `alignment` keep their channels.

    Args:
        model: the network, left as it was.
        image: one example input, float32 [1, 3, height, width].
        head: the layer whose outputs are the classes, never pruned.
        spec: which layers are protected, how much of a group may be removed, and how importance is compared.
        alignment: pruned widths are multiples of it.
        criterion: scores the channels of a group.
        gradients: by parameter name, where the criterion needs them.
        blocks: residual blocks that may be dropped.

    Raises:
        ToolchainError: a pattern in `protect` matches no layer, the model cannot be traced, or the criterion needs
            gradients and there are none.
    """
    layers = measure_layers(model, image)
    prunable = find_prunable_groups(model, image, head, spec, layers, gradients)
    droppable = [block for block in blocks if not is_protected_block(layers, block, spec.protect)]
    shares = importance.compute_shares(prunable, criterion, spec.ranking)
    orders = [torch.argsort(share, stable=True) for share in shares]
    return width_search.SearchSpace(
        full_layers=layers, groups=tuple(prunable), channel_order=tuple(orders), droppable_blocks=tuple(droppable),
        sorted_importance=tuple(share[order] for share, order in zip(shares, orders, strict=True)), alignment=alignment,
        max_pruned_share=spec.max_share,
    )  # fmt: skip


def find_prunable_groups(
    model: nn.Module, image: Tensor, head: str, spec: PruneSpec, layers: Sequence[Layer],
    gradients: Mapping[str, GradientMoments] | None = None,
) -> list[PruningGroup]:  # fmt: skip
    """Return the pruning groups that the recipe does not protect; `layers` are the model's, from `measure_layers`.

    Raises:
        ToolchainError: a pattern in `protect` matches no layer, or the model cannot be traced.
    """
    check_protect_patterns(spec.protect, layers)
    return [group for group in groups.find(model, image, head, gradients) if not is_protected(group, spec.protect)]


def check_protect_patterns(patterns: Sequence[str], layers: Sequence[Layer]) -> None:
    """Check that every pattern in `protect` matches a layer.

    Raises:
        ToolchainError: a pattern matches no layer; the message lists the layers.
    """
    names = [layer.name for layer in layers]
    for pattern in patterns:
        if not any(fnmatch(name, pattern) for name in names):
            raise ToolchainError(f"[prune] protect = {pattern!r} matches no layer. The layers are: {', '.join(names)}")


def is_protected(group: PruningGroup, patterns: Sequence[str]) -> bool:
    """Return whether a group has to keep every channel, because a layer that produces them is protected."""
    return any(fnmatch(m.module_name, pattern) for m in group.coupled_layers if m.role == "out" for pattern in patterns)


def is_protected_block(layers: Sequence[Layer], block: str, patterns: Sequence[str]) -> bool:
    """Return whether a residual block cannot be dropped, because a layer in it is protected."""
    return any(
        fnmatch(layer.name, pattern)
        for layer in layers
        if width_search.is_inside(layer.name, block)
        for pattern in patterns
    )
