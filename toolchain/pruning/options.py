"""Options: carried out of a larger module; to be described."""

from collections.abc import Mapping, Sequence
from fnmatch import fnmatch

import torch
from torch import Tensor, nn

from toolchain.config.recipe import PruneSpec
from toolchain.core.errors import ToolchainError
from toolchain.models.profile import Layer, layers, macs
from toolchain.pruning import groups, importance, width_search
from toolchain.pruning.gradients import Gradient
from toolchain.pruning.groups import Group
from toolchain.pruning.surgery import Surgery, of


def plan(
    model: nn.Module, image: Tensor, *, head: str, spec: PruneSpec, alignment: int, criterion: importance.Criterion,
    gradients: Mapping[str, Gradient] | None = None,
) -> Surgery:  # fmt: skip
    """A Surgery that removes `spec.ratio` of the multiply-accumulates at the least lost importance.

    Args: as `options`.

    Raises:
        ToolchainError: as `options`; or the ratio cannot be reached.
    """
    if not spec.ratio:
        return Surgery()
    found = options(model, image, head=head, spec=spec, alignment=alignment, criterion=criterion, gradients=gradients)
    total = macs(found.sizes)
    try:
        choice = width_search.narrowed(found, macs, (1 - spec.ratio) * total)
    except width_search.Unreachable as reason:
        raise ToolchainError(
            f"[prune] ratio = {spec.ratio} cannot be reached with widths in multiples of {alignment}: "
            f"the most is {1 - reason.least / total:.2f}; lower the ratio, raise max_share or protect less"
        ) from reason
    return of(model, found, choice)


def options(
    model: nn.Module, image: Tensor, *, head: str, spec: PruneSpec, alignment: int, criterion: importance.Criterion,
    gradients: Mapping[str, Gradient] | None = None, blocks: Sequence[str] = (),
) -> width_search.Options:  # fmt: skip
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
    sizes = layers(model, image)
    found = prunable(model, image, head, spec, sizes, gradients)
    free = [block for block in blocks if not protected_block(sizes, block, spec.protect)]
    shares = importance.shares(found, criterion, spec.ranking)
    order = [torch.argsort(share, stable=True) for share in shares]
    return width_search.Options(
        sizes=sizes, groups=tuple(found), ranked=tuple(order), blocks=tuple(free), alignment=alignment,
        ascending=tuple(share[row] for share, row in zip(shares, order, strict=True)), max_share=spec.max_share,
    )  # fmt: skip


def prunable(
    model: nn.Module, image: Tensor, head: str, spec: PruneSpec, sizes: Sequence[Layer],
    gradients: Mapping[str, Gradient] | None = None,
) -> list[Group]:  # fmt: skip
    """The groups of channels that the recipe does not protect; `sizes` are those of the model's layers.

    Raises:
        ToolchainError: a protected pattern matches nothing, or the model cannot be traced.
    """
    known(spec.protect, sizes)
    return [group for group in groups.find(model, image, head, gradients) if not protected(group, spec.protect)]


def known(patterns: Sequence[str], sizes: Sequence[Layer]) -> None:
    """Asserts that every protected pattern means a layer.

    Raises:
        ToolchainError: one matches nothing; names the layers there are.
    """
    names = [layer.name for layer in sizes]
    for pattern in patterns:
        if not any(fnmatch(name, pattern) for name in names):
            raise ToolchainError(f"[prune] protect = {pattern!r} matches no layer; layers are {', '.join(names)}")


def protected(group: Group, patterns: Sequence[str]) -> bool:
    """Whether a group has to keep every channel, because a layer that produces them does."""
    return any(fnmatch(m.module, pattern) for m in group.members if m.side == "out" for pattern in patterns)


def protected_block(sizes: Sequence[Layer], block: str, patterns: Sequence[str]) -> bool:
    """Whether a residual block has to stay, because a layer in it does."""
    return any(fnmatch(n.name, pattern) for n in sizes if width_search.inside(n.name, block) for pattern in patterns)
