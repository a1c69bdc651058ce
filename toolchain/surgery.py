"""Structured pruning as data: read channel groups, make a Surgery, apply or replay it.

Torch-Pruning's dependency graph says which channels must go together; everything after that is ours. A Surgery
lists kept indices in the original numbering, so applying it is slicing tensors: it needs no Torch-Pruning and no
pickled model, and the same plan gives the same network on a freshly built one.
"""

import copy
import math
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from toolchain import records
from toolchain.errors import ToolchainError
from toolchain.values import Layer, PruneSpec, Surgery

Side = Literal["out", "in"]
SIDES: Mapping[str, Side] = {
    "prune_out_channels": "out",
    "prune_depthwise_conv_out_channels": "out",
    "prune_in_channels": "in",
    "prune_depthwise_conv_in_channels": "out",  # one weight row a channel: the same slice from either side
}


@dataclass(frozen=True)
class Member:
    """One tensor of a group, with a row for each of the group's channels.

    `positions[c]` are the indices in the module's own dimension that belong to the group's channel c
    (several where a flatten stands in between).
    """

    module: str
    kind: str  # "conv" | "depthwise" | "linear" | "norm"
    side: Side
    positions: tuple[tuple[int, ...], ...]
    weight: Tensor  # float32 [channels, anything]


@dataclass(frozen=True)
class Group:
    """Channels that can only be removed together, over all layers that see them."""

    channels: int
    members: tuple[Member, ...]

    @property
    def layers(self) -> int:
        """How many convolutions and linear layers read or write these channels."""
        return sum(member.kind != "norm" for member in self.members)

    @property
    def name(self) -> str:
        """The layer that produces these channels."""
        return self.members[0].module


Criterion = Callable[[Group], Tensor]


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


def groups(model: nn.Module, image: Tensor, head: str) -> tuple[Group, ...]:
    """Every prunable group of channels.

    Left out are groups whose channels reach the outputs of `head`, that run through a grouped convolution (which
    would have to keep equal shares in each of its groups), or that the dependency graph does not account for fully.

    Raises:
        ToolchainError: the dependency graph cannot be built for this model.
    """
    import torch_pruning  # here, because importing it costs a second that replaying a plan does not need

    model = copy.deepcopy(model).eval()  # tracing leaves hooks and gradients behind
    for parameter in model.parameters():
        parameter.requires_grad_(True)
    try:
        graph = torch_pruning.DependencyGraph().build_dependency(model, example_inputs=image)
        raw = list(graph.get_all_groups(root_module_types=[nn.Conv2d, nn.Linear]))
    except Exception as reason:  # Torch-Pruning raises whatever its tracing met
        raise ToolchainError(
            f"the channels of this model cannot be traced for pruning ({type(reason).__name__}: {reason}); "
            "set [prune] ratio = 0 to go on without pruning"
        ) from reason
    names = {module: name for name, module in model.named_modules()}
    read = [_read_group(item, names, head) for item in raw]
    whole = _covered_once(read, dict(model.named_modules()))
    return tuple(g for g, free in read if free and all((m.module, m.side) in whole for m in g.members))


def _read_group(raw: Any, names: Mapping[nn.Module, str], head: str) -> tuple[Group, bool]:
    """A group of the dependency graph in our terms, and whether it may lose channels."""
    roots = sorted({root for item in raw.items for root in item.root_idxs})
    place = {root: row for row, root in enumerate(roots)}
    members: dict[tuple[str, Side], Member] = {}
    free = True
    for item in raw.items:
        module = item.dep.target.module
        if module not in names:
            # an operation of the graph, not a layer; or a bare parameter, which we cannot name
            free = free and not isinstance(module, nn.Parameter)
            continue
        name, side = names[module], SIDES.get(item.dep.handler.__name__)
        grouped = isinstance(module, nn.Conv2d) and module.groups > 1 and not _is_depthwise(module)
        sliceable = isinstance(module, nn.Conv2d | nn.Linear | nn.modules.batchnorm._BatchNorm)
        if side is None or grouped or not sliceable or (name == head and side == "out"):
            free = False
            continue
        rows: list[list[int]] = [[] for _ in roots]
        for index, root in zip(item.idxs, item.root_idxs, strict=True):
            rows[place[root]].append(int(index))
        positions = tuple(tuple(row) for row in rows)
        weight = _rows(module, side, positions)
        if weight is None:
            free = False
            continue
        members.setdefault((name, side), Member(name, _kind(module), side, positions, weight))
    return Group(len(roots), tuple(members.values())), free and any(side == "out" for _, side in members)


def _covered_once(read: Sequence[tuple[Group, bool]], modules: Mapping[str, nn.Module]) -> set[tuple[str, Side]]:
    """The sides of layers whose every channel is in exactly one group.

    Torch-Pruning 1.6.1 loses track of channels that run through a concatenation straight into a flatten; a group
    that misses channels, or claims another's, would cut the wrong ones.
    """
    seen: dict[tuple[str, Side], list[int]] = defaultdict(list)
    for group, _ in read:
        for member in group.members:
            seen[member.module, member.side] += [i for row in member.positions for i in row]
    return {key for key, found in seen.items() if sorted(found) == list(range(_extent(modules[key[0]], key[1])))}


def _extent(module: nn.Module, side: Side) -> int:
    weight = module.weight
    assert isinstance(weight, Tensor)
    return weight.shape[0 if side == "out" else 1]


def _rows(module: nn.Module, side: Side, positions: tuple[tuple[int, ...], ...]) -> Tensor | None:
    weight = getattr(module, "weight", None)
    if not isinstance(weight, Tensor) or any(not row or len(row) != len(positions[0]) for row in positions):
        return None
    rows = weight.detach().float()
    rows = rows.transpose(0, 1) if side == "in" else rows
    rows = rows.reshape(rows.shape[0], -1)
    return torch.stack([rows[list(row)].flatten() for row in positions])


def _is_depthwise(module: nn.Module) -> bool:
    return isinstance(module, nn.Conv2d) and module.groups == module.in_channels == module.out_channels > 1


def _kind(module: nn.Module) -> str:
    if isinstance(module, nn.Conv2d):
        return "depthwise" if _is_depthwise(module) else "conv"
    return "linear" if isinstance(module, nn.Linear) else "norm"


def plan(
    model: nn.Module, image: Tensor, *, head: str, spec: PruneSpec, alignment: int, criterion: Criterion
) -> Surgery:
    """A Surgery that removes `spec.ratio` of the multiply-accumulates at the least lost importance.

    Greedy: the step with the least importance lost per multiply-accumulate saved goes first; a step takes a group
    to the next lower multiple of `alignment`. A channel's importance is its share of its own group's total, counted
    once in every layer that sees it: a residual stream is worth more than the inside of one block. Groups no wider
    than `alignment` stay.

    Raises:
        ToolchainError: a protected pattern matches nothing, or the ratio cannot be reached.
    """
    if spec.ratio <= 0:
        return Surgery()
    sizes = {layer.name: layer for layer in layers(model, image)}
    for pattern in spec.protect:
        if not any(fnmatch(name, pattern) for name in sizes):
            raise ToolchainError(f"[prune] protect = {pattern!r} matches no layer; layers are {', '.join(sizes)}")
    found = [g for g in groups(model, image, head) if not _protected(g, spec.protect)]
    order = [torch.argsort(criterion(group)) for group in found]
    shares = [(s := criterion(group).double())[o] / s.sum().clamp_min(1e-30) for group, o in zip(found, order, strict=True)]  # fmt: skip
    kept = [group.channels for group in found]
    wanted = (1 - spec.ratio) * sum(layer.macs for layer in sizes.values())
    cost = _Cost(sizes, found)
    while (macs := cost(kept)) > wanted:
        best: tuple[float, int, int] | None = None
        for index, group in enumerate(found):
            floor = max(alignment, math.ceil(group.channels * (1 - spec.max_share)))
            lower = _narrower(kept[index], alignment)
            if lower < floor:
                continue
            trial = [*kept[:index], lower, *kept[index + 1 :]]
            gone = shares[index][group.channels - kept[index] : group.channels - lower].sum().item() * group.layers
            rate = gone / max(macs - cost(trial), 1.0)
            if best is None or rate < best[0]:
                best = (rate, index, lower)
        if best is None:
            reached = 1 - macs / sum(layer.macs for layer in sizes.values())
            raise ToolchainError(
                f"[prune] ratio = {spec.ratio} cannot be reached with widths in multiples of {alignment}: "
                f"the most is {reached:.2f}; lower the ratio, raise max_share or protect less"
            )
        kept[best[1]] = best[2]
    survivors = [o[group.channels - k :].sort().values for group, o, k in zip(found, order, kept, strict=True)]
    return _surgery(model, found, survivors)


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
        if _is_depthwise(module):
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
