"""Structured pruning as data: make a Surgery, apply or replay it.

A Surgery lists kept indices in the original numbering, so applying it is slicing tensors: it needs no Torch-Pruning
and no pickled model, and the same plan gives the same network on a freshly built one.
"""

import copy
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from toolchain import groups, importance, records, widths
from toolchain.errors import ToolchainError
from toolchain.gradients import Gradient
from toolchain.groups import Group, Side, is_depthwise
from toolchain.values import Layer, LayerKind, PruneSpec, Surgery


def layers(model: nn.Module, image: Tensor) -> tuple[Layer, ...]:
    """Sizes and multiply-accumulates of every convolution and linear layer for one image [1, 3, height, width]."""
    found: list[Layer] = []

    def note(name: str) -> Callable[[nn.Module, Any, Tensor], None]:
        def hook(module: nn.Module, _: Any, output: Tensor) -> None:
            assert isinstance(module, nn.Conv2d | nn.Linear)
            weight = module.weight
            sites = output[0].numel() // weight.shape[0]
            bias = 0 if module.bias is None else module.bias.numel()
            inputs = module.in_channels if isinstance(module, nn.Conv2d) else module.in_features
            macs = weight.numel() * sites
            found.append(
                Layer(
                    name=name, kind=_kind(module), inputs=inputs, outputs=weight.shape[0], sites=sites, macs=macs,
                    parameters=weight.numel() + bias,
                )
            )  # fmt: skip

        return hook

    handles = [m.register_forward_hook(note(n)) for n, m in model.named_modules() if isinstance(m, nn.Conv2d | nn.Linear)]  # fmt: skip
    training = model.training
    with torch.no_grad():
        model.eval()(image)
    model.train(training)
    for handle in handles:
        handle.remove()
    return tuple(found)


def _kind(module: nn.Conv2d | nn.Linear) -> LayerKind:
    if isinstance(module, nn.Linear):
        return "linear"
    if module.groups > 1:
        return "depthwise" if is_depthwise(module) else "grouped"
    return "pointwise" if module.weight[0, 0].numel() == 1 else "spatial"


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
        choice = widths.narrowed(found, macs, (1 - spec.ratio) * total)
    except widths.Unreachable as reason:
        raise ToolchainError(
            f"[prune] ratio = {spec.ratio} cannot be reached with widths in multiples of {alignment}: "
            f"the most is {1 - reason.least / total:.2f}; lower the ratio, raise max_share or protect less"
        ) from reason
    return of(model, found, choice)


def parameters(sizes: Sequence[Layer]) -> float:
    """Parameters of an architecture's convolutions and linear layers."""
    return float(sum(layer.parameters for layer in sizes))


def macs(sizes: Sequence[Layer]) -> float:
    """Multiply-accumulates of an architecture."""
    return float(sum(layer.macs for layer in sizes))


def options(
    model: nn.Module, image: Tensor, *, head: str, spec: PruneSpec, alignment: int, criterion: importance.Criterion,
    gradients: Mapping[str, Gradient] | None = None, blocks: Sequence[str] = (),
) -> widths.Options:  # fmt: skip
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
    return widths.Options(
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
    return any(fnmatch(n.name, pattern) for n in sizes if widths.inside(n.name, block) for pattern in patterns)


def of(model: nn.Module, found: widths.Options, choice: widths.Choice) -> Surgery:
    """The plan that a choice comes to: the least important channels go."""
    rows = zip(found.ranked, found.groups, choice.kept, strict=True)
    survivors = [ranked[group.channels - kept :].sort().values for ranked, group, kept in rows]
    made = _surgery(model, found.groups, survivors)
    gone = sorted(choice.dropped)
    keep = {name: kept for name, kept in made.keep.items() if not any(widths.inside(name, block) for block in gone)}
    attributes = {name: v for name, v in made.attributes.items() if not any(widths.inside(name, b) for b in gone)}
    return Surgery(keep=keep, attributes=attributes, dropped=tuple(gone))


def _surgery(model: nn.Module, found: Sequence[Group], survivors: Sequence[Tensor]) -> Surgery:
    gone: dict[tuple[str, Side], set[int]] = defaultdict(set)
    for group, rows in zip(found, survivors, strict=True):
        stay = set(rows.tolist())
        for member in group.members:
            cut = (i for channel, row in enumerate(member.positions) if channel not in stay for i in row)
            gone[member.module, member.side].update(cut)
    modules = dict(model.named_modules())
    keep: dict[str, dict[int, list[int]]] = defaultdict(dict)
    attributes: dict[str, dict[str, int]] = defaultdict(dict)
    for (name, side), lost in gone.items():
        if not lost:
            continue
        module = modules[name]
        for tensor, dimension, size in _sliced(module, side):
            keep[f"{name}.{tensor}"][dimension] = [i for i in range(size) if i not in lost]
        for attribute in _counted(module, side):
            attributes[name][attribute] = int(getattr(module, attribute)) - len(lost)
    return Surgery(keep=dict(keep), attributes=dict(attributes))


def _sliced(module: nn.Module, side: Side) -> list[tuple[str, int, int]]:
    """The tensors of a module that shrink with its channels: name, dimension, full size."""
    weight = module.weight
    assert isinstance(weight, Tensor)
    if side == "in":
        return [("weight", 1, weight.shape[1])]
    own = {**dict(module.named_parameters(recurse=False)), **dict(module.named_buffers(recurse=False))}
    return [(name, 0, tensor.shape[0]) for name, tensor in own.items() if tensor.ndim and tensor.shape[0] == weight.shape[0]]  # fmt: skip


def _counted(module: nn.Module, side: Side) -> tuple[str, ...]:
    if isinstance(module, nn.Conv2d):
        if is_depthwise(module):
            return ("in_channels", "out_channels", "groups")
        return ("out_channels",) if side == "out" else ("in_channels",)
    if isinstance(module, nn.Linear):
        return ("out_features",) if side == "out" else ("in_features",)
    return tuple(name for name in ("num_features", "num_channels") if hasattr(module, name))


def apply(model: nn.Module, surgery: Surgery) -> nn.Module:
    """A new, smaller model; `model` is left as it was.

    Raises:
        ToolchainError: the plan was made for another model; names the first tensor that differs.
    """
    model = copy.deepcopy(model)
    for name in surgery.dropped:
        _submodule(model, name)
        parent, _, child = name.rpartition(".")
        setattr(model.get_submodule(parent), child, nn.Identity())
    for key, dimensions in surgery.keep.items():
        owner, _, tensor_name = key.rpartition(".")
        module = _submodule(model, owner)
        old = getattr(module, tensor_name, None)
        if not isinstance(old, Tensor):
            raise ToolchainError(f"the surgery plan is for another model: it slices {key}, which this model lacks")
        new = old.detach()
        for dimension, indices in dimensions.items():
            if indices and max(indices) >= new.shape[dimension]:
                raise ToolchainError(
                    f"the surgery plan is for another model: it keeps index {max(indices)} of {key}, "
                    f"which has {new.shape[dimension]} along dimension {dimension}"
                )
            new = new.index_select(dimension, torch.tensor(indices))
        if isinstance(old, nn.Parameter):
            setattr(module, tensor_name, nn.Parameter(new, requires_grad=old.requires_grad))
        else:
            setattr(module, tensor_name, new)
    for name, overrides in surgery.attributes.items():
        for attribute, value in overrides.items():
            setattr(_submodule(model, name), attribute, value)
    return model


def compose(first: Surgery, second: Surgery) -> Surgery:
    """Two plans as one, in the numbering of the model that the first was made for.

    Args:
        first: for a model.
        second: for what the first makes of it.
    """
    dropped = {*first.dropped, *second.dropped}
    gone = [name for name in dropped if not any(name != other and widths.inside(name, other) for other in dropped)]

    def left(name: str) -> bool:
        return not any(widths.inside(name, block) for block in gone)

    keep = {name: _both(first.keep.get(name, {}), second.keep.get(name, {})) for name in {**first.keep, **second.keep}}
    attributes = {
        name: {**first.attributes.get(name, {}), **second.attributes.get(name, {})}
        for name in {**first.attributes, **second.attributes}
    }
    return Surgery(
        keep={name: rows for name, rows in keep.items() if left(name)},
        attributes={name: values for name, values in attributes.items() if left(name)},
        dropped=tuple(sorted(gone)),
    )


def _both(first: Mapping[int, Sequence[int]], second: Mapping[int, Sequence[int]]) -> dict[int, Sequence[int]]:
    """Kept indices of one tensor: those of the second count what the first has kept."""
    chosen = {d: [first[d][i] for i in rows] if d in first else rows for d, rows in second.items()}
    return {**first, **chosen}


def read(path: Path) -> Surgery:
    """Reads a plan that was written as JSON.

    Raises:
        ToolchainError: the file is not a surgery plan.
    """
    raw = records.read_json(path)
    try:
        keep = {name: {int(d): tuple(i) for d, i in dimensions.items()} for name, dimensions in raw["keep"].items()}
        return Surgery(keep=keep, attributes=raw["attributes"], dropped=tuple(raw["dropped"]))
    except (KeyError, TypeError, ValueError, AttributeError) as reason:
        raise ToolchainError(f"{path} is not a surgery plan; remove it and run again") from reason


def _submodule(model: nn.Module, name: str) -> nn.Module:
    try:
        return model.get_submodule(name)
    except AttributeError as reason:
        raise ToolchainError(f"the surgery plan is for another model: this one has no {name!r}") from reason
