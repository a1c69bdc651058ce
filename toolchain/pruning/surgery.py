"""Structured pruning as data: make a Surgery, apply or replay it.

A Surgery lists kept indices in the original numbering, so applying it is slicing tensors: it needs no Torch-Pruning
and no pickled model, and the same plan gives the same network on a freshly built one.
"""

import copy
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor, nn

from toolchain.core import files
from toolchain.core.errors import ToolchainError
from toolchain.models.profile import is_depthwise
from toolchain.pruning import width_search
from toolchain.pruning.groups import ChannelRole, PruningGroup


@dataclass(frozen=True, kw_only=True)
class Surgery:
    """Structured pruning as data: kept indices in the original numbering, replayed by slicing.

    `keep` maps a state-dict tensor to {dimension: kept indices}; `attributes` a module to integer overrides
    (channels, groups, heads); `dropped` names modules that become `nn.Identity`.
    """

    keep: Mapping[str, Mapping[int, Sequence[int]]] = field(default_factory=dict)
    attributes: Mapping[str, Mapping[str, int]] = field(default_factory=dict)
    dropped: tuple[str, ...] = ()


def build(model: nn.Module, found: width_search.SearchSpace, choice: width_search.Subnetwork) -> Surgery:
    """The plan that a choice comes to: the least important channels go."""
    rows = zip(found.channel_order, found.groups, choice.kept_channels, strict=True)
    survivors = [ranked[group.channels - kept :].sort().values for ranked, group, kept in rows]
    made = _surgery(model, found.groups, survivors)
    gone = sorted(choice.dropped_blocks)
    keep = {
        name: kept for name, kept in made.keep.items() if not any(width_search.is_inside(name, block) for block in gone)
    }
    attributes = {
        name: v for name, v in made.attributes.items() if not any(width_search.is_inside(name, b) for b in gone)
    }
    return Surgery(keep=keep, attributes=attributes, dropped=tuple(gone))


def _surgery(model: nn.Module, found: Sequence[PruningGroup], survivors: Sequence[Tensor]) -> Surgery:
    gone: dict[tuple[str, ChannelRole], set[int]] = defaultdict(set)
    for group, rows in zip(found, survivors, strict=True):
        stay = set(rows.tolist())
        for member in group.coupled_layers:
            cut = (i for channel, row in enumerate(member.channel_indices) if channel not in stay for i in row)
            gone[member.module_name, member.role].update(cut)
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


def _sliced(module: nn.Module, side: ChannelRole) -> list[tuple[str, int, int]]:
    """The tensors of a module that shrink with its channels: name, dimension, full size."""
    weight = module.weight
    assert isinstance(weight, Tensor)
    if side == "in":
        return [("weight", 1, weight.shape[1])]
    own = {**dict(module.named_parameters(recurse=False)), **dict(module.named_buffers(recurse=False))}
    return [(name, 0, tensor.shape[0]) for name, tensor in own.items() if tensor.ndim and tensor.shape[0] == weight.shape[0]]  # fmt: skip


def _counted(module: nn.Module, side: ChannelRole) -> tuple[str, ...]:
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
    gone = [
        name for name in dropped if not any(name != other and width_search.is_inside(name, other) for other in dropped)
    ]

    def left(name: str) -> bool:
        return not any(width_search.is_inside(name, block) for block in gone)

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
    raw = files.read_json(path)
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
