"""Options: carried out of a larger module; to be described."""

from collections.abc import Mapping, Sequence
from fnmatch import fnmatch

import torch
from torch import Tensor, nn

from toolchain.config.recipe import PruneSpec
from toolchain.core.errors import ToolchainError
from toolchain.models.profile import Layer, measure_layers, total_macs
from toolchain.pruning import groups, importance, width_search
from toolchain.pruning.gradients import GradientMoments
from toolchain.pruning.groups import PruningGroup
from toolchain.pruning.surgery import Surgery, build


def plan_for_ratio(
    model: nn.Module, image: Tensor, *, head: str, spec: PruneSpec, alignment: int, criterion: importance.Criterion,
    gradients: Mapping[str, GradientMoments] | None = None,
) -> Surgery:  # fmt: skip
    """A Surgery that removes `spec.ratio` of the multiply-accumulates at the least lost importance.

    Args: as `options`.

    Raises:
        ToolchainError: as `options`; or the ratio cannot be reached.
    """
    if not spec.ratio:
        return Surgery()
    found = build_search_space(
        model, image, head=head, spec=spec, alignment=alignment, criterion=criterion, gradients=gradients
    )
    total = total_macs(found.full_layers)
    try:
        choice = width_search.search(found, total_macs, (1 - spec.ratio) * total)
    except width_search.LimitUnreachable as reason:
        raise ToolchainError(
            f"[prune] ratio = {spec.ratio} cannot be reached with widths in multiples of {alignment}: "
            f"the most is {1 - reason.lowest_cost / total:.2f}; lower the ratio, raise max_share or protect less"
        ) from reason
    return build(model, found, choice)


def build_search_space(
    model: nn.Module, image: Tensor, *, head: str, spec: PruneSpec, alignment: int, criterion: importance.Criterion,
    gradients: Mapping[str, GradientMoments] | None = None, blocks: Sequence[str] = (),
) -> width_search.SearchSpace:  # fmt: skip
    """What may be cut of a model, and what each part is worth.

    A channel's importance is a share (`importance.shares`), counted once in every layer that sees it: a residual stream
    is worth more than the inside of one block. Groups no wider than `alignment` stay.

    Args:
        model: the network; left as it was.
        image: one example input, float32 [1, 3, height, width].
        head: the layer whose outputs are the classes, never cut.
        spec: what is protected, how much of a group may go, and how importance is compared.
        alignment: widths become multiples of it.
        criterion: importance of a group's channels.
        gradients: by parameter name, where the criterion needs them.
        blocks: residual blocks that may be left out.

    Raises:
        ToolchainError: a protected pattern matches nothing, or the criterion needs gradients and there are none.
    """
    sizes = measure_layers(model, image)
    found = find_prunable_groups(model, image, head, spec, sizes, gradients)
    free = [block for block in blocks if not is_protected_block(sizes, block, spec.protect)]
    shares = importance.compute_shares(found, criterion, spec.ranking)
    order = [torch.argsort(share, stable=True) for share in shares]
    return width_search.SearchSpace(
        full_layers=sizes, groups=tuple(found), channel_order=tuple(order), droppable_blocks=tuple(free), alignment=alignment,
        sorted_importance=tuple(share[row] for share, row in zip(shares, order, strict=True)), max_pruned_share=spec.max_share,
    )  # fmt: skip


def find_prunable_groups(
    model: nn.Module, image: Tensor, head: str, spec: PruneSpec, sizes: Sequence[Layer],
    gradients: Mapping[str, GradientMoments] | None = None,
) -> list[PruningGroup]:  # fmt: skip
    """The groups of channels that the recipe does not protect; `sizes` are those of the model's layers.

    Raises:
        ToolchainError: a protected pattern matches nothing, or the model cannot be traced.
    """
    check_protect_patterns(spec.protect, sizes)
    return [group for group in groups.find(model, image, head, gradients) if not is_protected(group, spec.protect)]


def check_protect_patterns(patterns: Sequence[str], sizes: Sequence[Layer]) -> None:
    """Asserts that every protected pattern means a layer.

    Raises:
        ToolchainError: one matches nothing; names the layers there are.
    """
    names = [layer.name for layer in sizes]
    for pattern in patterns:
        if not any(fnmatch(name, pattern) for name in names):
            raise ToolchainError(f"[prune] protect = {pattern!r} matches no layer; layers are {', '.join(names)}")


def is_protected(group: PruningGroup, patterns: Sequence[str]) -> bool:
    """Whether a group has to keep every channel, because a layer that produces them does."""
    return any(fnmatch(m.module_name, pattern) for m in group.coupled_layers if m.role == "out" for pattern in patterns)


def is_protected_block(sizes: Sequence[Layer], block: str, patterns: Sequence[str]) -> bool:
    """Whether a residual block has to stay, because a layer in it does."""
    return any(fnmatch(n.name, pattern) for n in sizes if width_search.is_inside(n.name, block) for pattern in patterns)
