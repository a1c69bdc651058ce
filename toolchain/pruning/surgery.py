"""Structured pruning as data: build a Surgery, apply it, compose two, read one from a file.

A Surgery lists the kept indices in the original numbering, so applying it only slices tensors. It needs neither
Torch-Pruning nor a pickled model, and the same plan gives the same network on a freshly built one.
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
    """A pruned architecture as data: kept indices in the original numbering, replayed by slicing.

    `keep` maps a state-dict tensor to {dimension: kept indices}, `attributes` maps a module to new integer attributes
    (channels, groups, heads), and `dropped` names the modules that become `nn.Identity`.
    """

    keep: Mapping[str, Mapping[int, Sequence[int]]] = field(default_factory=dict)
    attributes: Mapping[str, Mapping[str, int]] = field(default_factory=dict)
    dropped: tuple[str, ...] = ()


def build(model: nn.Module, space: width_search.SearchSpace, subnetwork: width_search.Subnetwork) -> Surgery:
    """Return the surgery that makes a subnetwork of the model, by removing the least important channels of each group."""
    rows = zip(space.channel_order, space.groups, subnetwork.kept_channels, strict=True)
    kept_by_group = [order[group.channels - kept :].sort().values for order, group, kept in rows]
    sliced = _slice_groups(model, space.groups, kept_by_group)
    dropped = sorted(subnetwork.dropped_blocks)
    return Surgery(
        keep={name: kept for name, kept in sliced.keep.items() if not _is_inside_any(name, dropped)},
        attributes={name: values for name, values in sliced.attributes.items() if not _is_inside_any(name, dropped)},
        dropped=tuple(dropped),
    )


def _is_inside_any(name: str, blocks: Sequence[str]) -> bool:
    return any(width_search.is_inside(name, block) for block in blocks)


def _slice_groups(model: nn.Module, groups: Sequence[PruningGroup], kept_by_group: Sequence[Tensor]) -> Surgery:
    """Return the surgery that keeps the given channels of each group, and drops no block."""
    removed: dict[tuple[str, ChannelRole], set[int]] = defaultdict(set)
    for group, kept in zip(groups, kept_by_group, strict=True):
        kept_channels = set(kept.tolist())
        for layer in group.coupled_layers:
            indices = (
                i for channel, row in enumerate(layer.channel_indices) if channel not in kept_channels for i in row
            )
            removed[layer.module_name, layer.role].update(indices)
    modules = dict(model.named_modules())
    keep: dict[str, dict[int, list[int]]] = defaultdict(dict)
    attributes: dict[str, dict[str, int]] = defaultdict(dict)
    for (name, role), removed_indices in removed.items():
        if not removed_indices:
            continue
        module = modules[name]
        for tensor, dimension, size in _sliced_tensors(module, role):
            keep[f"{name}.{tensor}"][dimension] = [i for i in range(size) if i not in removed_indices]
        for attribute in _width_attributes(module, role):
            attributes[name][attribute] = int(getattr(module, attribute)) - len(removed_indices)
    return Surgery(keep=dict(keep), attributes=dict(attributes))


def _sliced_tensors(module: nn.Module, role: ChannelRole) -> list[tuple[str, int, int]]:
    """Return the tensors of a module that shrink with its channels: name, dimension, full size."""
    weight = module.weight
    assert isinstance(weight, Tensor)
    if role == "in":
        return [("weight", 1, weight.shape[1])]
    tensors = {**dict(module.named_parameters(recurse=False)), **dict(module.named_buffers(recurse=False))}
    return [(name, 0, tensor.shape[0]) for name, tensor in tensors.items() if tensor.ndim and tensor.shape[0] == weight.shape[0]]  # fmt: skip


def _width_attributes(module: nn.Module, role: ChannelRole) -> tuple[str, ...]:
    """Return the attributes of a module that count the channels on one of its sides."""
    if isinstance(module, nn.Conv2d):
        if is_depthwise(module):
            return ("in_channels", "out_channels", "groups")
        return ("out_channels",) if role == "out" else ("in_channels",)
    if isinstance(module, nn.Linear):
        return ("out_features",) if role == "out" else ("in_features",)
    return tuple(name for name in ("num_features", "num_channels") if hasattr(module, name))


def apply(model: nn.Module, surgery: Surgery) -> nn.Module:
    """Return a new, smaller model; `model` is left as it was.

    Raises:
        ToolchainError: the plan was made for another model; the message names the first tensor that differs.
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
            raise ToolchainError(
                f"the surgery plan is for another model: it slices {key}, which this model does not have"
            )
        new = old.detach()
        for dimension, indices in dimensions.items():
            if indices and max(indices) >= new.shape[dimension]:
                raise ToolchainError(
                    f"the surgery plan is for another model: it keeps index {max(indices)} of {key}, "
                    f"whose size along dimension {dimension} is {new.shape[dimension]}"
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
    """Return two plans as one, in the numbering of the model that the first was made for.

    Args:
        first: plan for a model.
        second: plan for the model that the first one gives.
    """
    all_dropped = {*first.dropped, *second.dropped}
    outermost = [name for name in all_dropped if not _is_inside_any(name, [*(all_dropped - {name})])]
    keep = {
        name: _compose_indices(first.keep.get(name, {}), second.keep.get(name, {}))
        for name in {**first.keep, **second.keep}
    }
    attributes = {
        name: {**first.attributes.get(name, {}), **second.attributes.get(name, {})}
        for name in {**first.attributes, **second.attributes}
    }
    return Surgery(
        keep={name: kept for name, kept in keep.items() if not _is_inside_any(name, outermost)},
        attributes={name: values for name, values in attributes.items() if not _is_inside_any(name, outermost)},
        dropped=tuple(sorted(outermost)),
    )


def _compose_indices(
    first: Mapping[int, Sequence[int]], second: Mapping[int, Sequence[int]]
) -> dict[int, Sequence[int]]:
    """Return the kept indices of one tensor by dimension; those of `second` index into those of `first`."""
    composed = {d: [first[d][i] for i in kept] if d in first else kept for d, kept in second.items()}
    return {**first, **composed}


def read(path: Path) -> Surgery:
    """Read a plan from a JSON file.

    Raises:
        ToolchainError: the file is not a surgery plan.
    """
    raw = files.read_json(path)
    try:
        keep = {name: {int(d): tuple(i) for d, i in dimensions.items()} for name, dimensions in raw["keep"].items()}
        return Surgery(keep=keep, attributes=raw["attributes"], dropped=tuple(raw["dropped"]))
    except (KeyError, TypeError, ValueError, AttributeError) as reason:
        raise ToolchainError(f"{path} is not a surgery plan. Delete it and run again") from reason


def _submodule(model: nn.Module, name: str) -> nn.Module:
    try:
        return model.get_submodule(name)
    except AttributeError as reason:
        raise ToolchainError(f"the surgery plan is for another model: this model has no module {name!r}") from reason
