"""Groups of channels that can only be removed together, with everything that a criterion may rank them by.

Torch-Pruning's dependency graph says which channels must go together; here they are read into values of our own: for
each layer that sees a group, its parameters with one row for each of the group's channels.
"""

import copy
import warnings
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import chain
from typing import Any, Literal

import torch
from torch import Tensor, nn

from toolchain.core import progress
from toolchain.core.errors import ToolchainError, first_line
from toolchain.models.profile import is_depthwise
from toolchain.pruning import traceable_parts
from toolchain.pruning.gradients import GradientMoments
from toolchain.pruning.traceable_parts import TraceablePart

ChannelRole = Literal["out", "in"]
Need = Literal["gradients"]  # what a criterion may ask for beside the weights
# in the names of what windows of attention hold (Swin, MaxViT): Torch-Pruning 1.6.1 follows single channels through every
# shift and partition of the windows and had not ended after 200 s
WINDOW_ATTENTION_TENSOR = "relative_position"
ROLE_OF_PRUNING_FUNCTION: Mapping[str, ChannelRole] = {
    "prune_out_channels": "out",
    "prune_depthwise_conv_out_channels": "out",
    "prune_in_channels": "in",
    "prune_depthwise_conv_in_channels": "out",  # one weight row a channel: the same slice from either side
}


@dataclass(frozen=True)
class ParameterRows:
    """One parameter of a member: a row for each of the group's channels."""

    name: str  # "weight" | "bias"; of a norm its scale and its shift
    value: Tensor  # float32 [channels, values]
    gradient_moments: GradientMoments | None = None  # of the same shape; None where nobody asked for it

    @property
    def gradient(self) -> Tensor:
        """Mean gradient of the loss over the images, float32 [channels, values]."""
        return self._known().mean

    @property
    def squared_gradient(self) -> Tensor:
        """Mean of every single image's squared gradient, float32 [channels, values]."""
        return self._known().mean_square

    def _known(self) -> GradientMoments:
        if self.gradient_moments is None:
            raise ToolchainError(
                "this pruning criterion reads gradients, and none were collected; "
                'its file must say NEEDS = ("gradients",), and the plan be given gradients of this model'
            )
        return self.gradient_moments


@dataclass(frozen=True)
class CoupledLayer:
    """One side of a layer that sees a group's channels.

    `positions[c]` are the indices in the module's own dimension that belong to the group's channel c
    (several where a flatten stands in between).
    """

    module_name: str
    layer_type: str  # "conv" | "depthwise" | "linear" | "norm"
    role: ChannelRole
    channel_indices: tuple[tuple[int, ...], ...]
    parameters: tuple[ParameterRows, ...]  # the weight first; the bias where the layer has one and gives the channels

    @property
    def weight(self) -> Tensor:
        """Float32 [channels, values]; a norm's scale."""
        return self.parameters[0].value


@dataclass(frozen=True)
class PruningGroup:
    """Channels that can only be removed together, over all layers that see them."""

    channels: int
    coupled_layers: tuple[CoupledLayer, ...]

    @property
    def layer_count(self) -> int:
        """How many convolutions and linear layers read or write these channels."""
        return sum(member.layer_type != "norm" for member in self.coupled_layers)

    @property
    def name(self) -> str:
        """The layer that produces these channels."""
        return self.coupled_layers[0].module_name

    @property
    def parameters(self) -> tuple[ParameterRows, ...]:
        """All parameters of all members."""
        return tuple(parameter for member in self.coupled_layers for parameter in member.parameters)


def find(
    model: nn.Module, image: Tensor, head: str, gradients: Mapping[str, GradientMoments] | None = None
) -> tuple[PruningGroup, ...]:
    """Every prunable group of channels.

    Left out are groups whose channels reach the outputs of `head`, that run through a grouped convolution (which
    would have to keep equal shares in each of its groups), or that the dependency graph does not account for fully.
    A model that cannot be traced as a whole is traced in parts: channels that leave a part stay.

    Args:
        model: the network; left as it was.
        image: one example input, float32 [1, 3, height, width].
        head: the layer whose outputs are the classes.
        gradients: by parameter name, for criteria that need them.

    Raises:
        ToolchainError: the dependency graph cannot be built for this model.
    """
    model = copy.deepcopy(model).eval()  # tracing leaves hooks and gradients behind
    for parameter in model.parameters():
        parameter.requires_grad_(True)
    pending, found, refused = [TraceablePart("", model, image)], list[PruningGroup](), list[Exception]()
    while pending:
        part = pending.pop(0)
        try:
            found += _traced(part, head, gradients or {})
        except Exception as reason:  # Torch-Pruning raises whatever its tracing met
            refused.append(reason)
            with suppress(Exception):  # a part that cannot be called again as it was called has no parts to be had
                pending += traceable_parts.split(part)
    if refused and not found:
        first = refused[0]
        raise ToolchainError(
            f"the channels of this model cannot be traced for pruning ({type(first).__name__}: {first}); "
            "set [prune] ratio = 0 to go on without pruning"
        ) from first
    if refused:
        progress.log(f"pruning: traced in parts, whose outer channels stay ({first_line(refused[0])})")
    return tuple(found)


def _traced(part: TraceablePart, head: str, gradients: Mapping[str, GradientMoments]) -> list[PruningGroup]:
    """The groups of one part, without those whose channels come into it or leave it."""
    import torch_pruning  # here, because importing it costs a second that replaying a plan does not need

    windows = next((name for name, _ in _tensors(part.module) if WINDOW_ATTENTION_TENSOR in name), None)
    if windows:
        raise ToolchainError(f"attention in windows ({part.full_name(windows)}) is not followed")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # bare parameters, which we leave alone
        framed = part.module if not part.name else traceable_parts.FixedBoundary(part)
        graph = torch_pruning.DependencyGraph().build_dependency(framed, example_inputs=part.example_input)
        raw = list(graph.get_all_groups(root_module_types=[nn.Conv2d, nn.Linear]))
    names = {module: part.full_name(name) for name, module in part.module.named_modules()}
    read = [_read_group(item, names, head, gradients) for item in raw]
    whole = _covered_once(read, {part.full_name(name): module for name, module in part.module.named_modules()})
    return [g for g, free in read if free and all((m.module_name, m.role) in whole for m in g.coupled_layers)]


def _tensors(module: nn.Module) -> Iterable[tuple[str, Tensor]]:
    return chain(module.named_parameters(), module.named_buffers())


def _read_group(
    raw: Any, names: Mapping[nn.Module, str], head: str, gradients: Mapping[str, GradientMoments]
) -> tuple[PruningGroup, bool]:
    """A group of the dependency graph in our terms, and whether it may lose channels."""
    roots = sorted({root for item in raw.items for root in item.root_idxs})
    place = {root: row for row, root in enumerate(roots)}
    members: dict[tuple[str, ChannelRole], CoupledLayer] = {}
    free = True
    for item in raw.items:
        module = item.dep.target.module
        if module not in names:
            # an operation of the graph, not a layer; or a bare parameter, which we cannot name
            free = free and not isinstance(module, nn.Parameter)
            continue
        name, side = names[module], ROLE_OF_PRUNING_FUNCTION.get(item.dep.handler.__name__)
        grouped = isinstance(module, nn.Conv2d) and module.groups > 1 and not is_depthwise(module)
        sliceable = isinstance(module, nn.Conv2d | nn.Linear | nn.modules.batchnorm._BatchNorm)
        if side is None or grouped or not sliceable or (name == head and side == "out"):
            free = False
            continue
        rows: list[list[int]] = [[] for _ in roots]
        for index, root in zip(item.idxs, item.root_idxs, strict=True):
            rows[place[root]].append(int(index))
        positions = tuple(tuple(row) for row in rows)
        parameters = _parameters(name, module, side, positions, gradients)
        if not parameters:
            free = False
            continue
        members.setdefault((name, side), CoupledLayer(name, _kind(module), side, positions, parameters))
    return PruningGroup(len(roots), tuple(members.values())), free and any(side == "out" for _, side in members)


def _covered_once(
    read: Sequence[tuple[PruningGroup, bool]], modules: Mapping[str, nn.Module]
) -> set[tuple[str, ChannelRole]]:
    """The sides of layers whose every channel is in exactly one group.

    Torch-Pruning 1.6.1 loses track of channels that run through a concatenation straight into a flatten; a group
    that misses channels, or claims another's, would cut the wrong ones.
    """
    seen: dict[tuple[str, ChannelRole], list[int]] = defaultdict(list)
    for group, _ in read:
        for member in group.coupled_layers:
            seen[member.module_name, member.role] += [i for row in member.channel_indices for i in row]
    return {key for key, found in seen.items() if sorted(found) == list(range(_extent(modules[key[0]], key[1])))}


def _extent(module: nn.Module, side: ChannelRole) -> int:
    weight = module.weight
    assert isinstance(weight, Tensor)
    return weight.shape[0 if side == "out" else 1]


def _parameters(
    name: str,
    module: nn.Module,
    side: ChannelRole,
    positions: tuple[tuple[int, ...], ...],
    gradients: Mapping[str, GradientMoments],
) -> tuple[ParameterRows, ...]:
    """What of a module goes with the channels; nothing where they are not laid out evenly, or there is no weight."""
    own = dict(module.named_parameters(recurse=False))
    if "weight" not in own or any(not row or len(row) != len(positions[0]) for row in positions):
        return ()

    def read(kind: str) -> ParameterRows:
        known = gradients.get(f"{name}.{kind}")
        rows = known and GradientMoments(_rows(known.mean, side, positions), _rows(known.mean_square, side, positions))
        return ParameterRows(kind, _rows(own[kind].detach(), side, positions), rows)

    # inputs are not added anything to: a bias belongs to the outputs
    return tuple(read(kind) for kind in ("weight", "bias") if kind in own and (kind == "weight" or side == "out"))


def _rows(tensor: Tensor, side: ChannelRole, positions: tuple[tuple[int, ...], ...]) -> Tensor:
    rows = tensor.float()
    rows = rows.transpose(0, 1) if side == "in" else rows
    rows = rows.reshape(rows.shape[0], -1)
    return torch.stack([rows[list(row)].flatten() for row in positions])


def _kind(module: nn.Module) -> str:
    if isinstance(module, nn.Conv2d):
        return "depthwise" if is_depthwise(module) else "conv"
    return "linear" if isinstance(module, nn.Linear) else "norm"
