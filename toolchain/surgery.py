"""Structured pruning as data: make a Surgery, apply or replay it.

A Surgery lists kept indices in the original numbering, so applying it is slicing tensors: it needs no Torch-Pruning
and no pickled model, and the same plan gives the same network on a freshly built one.
"""

import copy
import math
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from toolchain import groups, importance, records
from toolchain.errors import ToolchainError
from toolchain.gradients import Gradient
from toolchain.groups import Group, Side, is_depthwise
from toolchain.values import Layer, PruneSpec, Surgery


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
            found.append(Layer(name=name, inputs=inputs, outputs=weight.shape[0], macs=macs, parameters=weight.numel() + bias))  # fmt: skip

        return hook

    handles = [m.register_forward_hook(note(n)) for n, m in model.named_modules() if isinstance(m, nn.Conv2d | nn.Linear)]  # fmt: skip
    training = model.training
    with torch.no_grad():
        model.eval()(image)
    model.train(training)
    for handle in handles:
        handle.remove()
    return tuple(found)


def plan(
    model: nn.Module, image: Tensor, *, head: str, spec: PruneSpec, alignment: int, criterion: importance.Criterion,
    gradients: Mapping[str, Gradient] | None = None,
) -> Surgery:  # fmt: skip
    """A Surgery that removes `spec.ratio` of the multiply-accumulates at the least lost importance.

    Greedy: the step with the least importance lost per multiply-accumulate saved goes first; a step takes a group
    to the next lower multiple of `alignment`. A channel's importance is a share (`importance.shares`), counted once in
    every layer that sees it: a residual stream is worth more than the inside of one block. Groups no wider than
    `alignment` stay.

    Args:
        model: the network; left as it was.
        image: one example input, float32 [1, 3, height, width].
        head: the layer whose outputs are the classes, never cut.
        spec: how much goes, what is protected, and how importance is compared.
        alignment: widths become multiples of it.
        criterion: importance of a group's channels.
        gradients: by parameter name, where the criterion needs them.

    Raises:
        ToolchainError: a protected pattern matches nothing, the ratio cannot be reached, or the criterion needs
            gradients and there are none.
    """
    if spec.ratio <= 0:
        return Surgery()
    sizes = {layer.name: layer for layer in layers(model, image)}
    for pattern in spec.protect:
        if not any(fnmatch(name, pattern) for name in sizes):
            raise ToolchainError(f"[prune] protect = {pattern!r} matches no layer; layers are {', '.join(sizes)}")
    found = [g for g in groups.find(model, image, head, gradients) if not _protected(g, spec.protect)]
    shares = importance.shares(found, criterion, spec.ranking)
    order = [torch.argsort(share, stable=True) for share in shares]
    kept = _narrowed(found, [s[o] for s, o in zip(shares, order, strict=True)], sizes, spec, alignment)
    survivors = [o[group.channels - k :].sort().values for group, o, k in zip(found, order, kept, strict=True)]
    return _surgery(model, found, survivors)


def _narrowed(
    found: Sequence[Group], ascending: Sequence[Tensor], sizes: Mapping[str, Layer], spec: PruneSpec, alignment: int
) -> list[int]:
    """How many channels each group keeps; `ascending` is the importance of each one's, the least first."""
    kept = [group.channels for group in found]
    total = sum(layer.macs for layer in sizes.values())
    cost = _Cost(sizes, found)
    while (macs := cost(kept)) > (1 - spec.ratio) * total:
        best: tuple[float, int, int] | None = None
        for index, group in enumerate(found):
            floor = max(alignment, math.ceil(group.channels * (1 - spec.max_share)))
            lower = _narrower(kept[index], alignment)
            if lower < floor:
                continue
            trial = [*kept[:index], lower, *kept[index + 1 :]]
            lost = ascending[index][group.channels - kept[index] : group.channels - lower]
            rate = lost.sum().item() * group.layers / max(macs - cost(trial), 1.0)
            if best is None or rate < best[0]:
                best = (rate, index, lower)
        if best is None:
            raise ToolchainError(
                f"[prune] ratio = {spec.ratio} cannot be reached with widths in multiples of {alignment}: "
                f"the most is {1 - macs / total:.2f}; lower the ratio, raise max_share or protect less"
            )
        kept[best[1]] = best[2]
    return kept


def _protected(group: Group, patterns: Sequence[str]) -> bool:
    return any(fnmatch(m.module, pattern) for m in group.members if m.side == "out" for pattern in patterns)


def _narrower(channels: int, alignment: int) -> int:
    return (channels - 1) // alignment * alignment


class _Cost:
    """Multiply-accumulates of the whole model for a list of kept channels, one number a group."""

    def __init__(self, sizes: Mapping[str, Layer], found: Sequence[Group]) -> None:
        self.sizes = sizes
        self.touching: dict[str, list[tuple[int, int, int]]] = defaultdict(list)
        for index, group in enumerate(found):
            for member in group.members:
                if member.module in sizes:
                    layer = sizes[member.module]
                    covered = sum(len(row) for row in member.positions)
                    full = layer.outputs if member.side == "out" else layer.inputs
                    self.touching[member.module].append((index, covered, full * (1 if member.side == "out" else -1)))
        self.channels = [group.channels for group in found]

    def __call__(self, kept: Sequence[int]) -> float:
        total = 0.0
        for name, layer in self.sizes.items():
            removed = {"out": 0.0, "in": 0.0}
            for index, covered, signed in self.touching[name]:
                share = covered / abs(signed) * (1 - kept[index] / self.channels[index])
                removed["out" if signed > 0 else "in"] += share
            total += layer.macs * (1 - removed["out"]) * (1 - removed["in"])
        return total


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
