"""Pruning groups: channels that can only be removed together, with everything that a criterion may rank them by.

Torch-Pruning's dependency graph says which channels are coupled. Here they are read into values of our own: for each
coupled layer, its parameters with one row for each channel of the group.
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
from toolchain.pruning import partial_tracing
from toolchain.pruning.gradients import GradientMoments
from toolchain.pruning.partial_tracing import TraceablePart
from toolchain.pruning.trace_limit import limit_seconds

ChannelRole = Literal["out", "in"]
Need = Literal["gradients"]  # what a criterion may ask for beside the weights
# Part of the names of tensors in window attention (Swin, MaxViT). Torch-Pruning 1.6.1 follows single channels through
# every shift and partition of the windows and had not finished after 200 s.
WINDOW_ATTENTION_TENSOR = "relative_position"
ROLE_OF_PRUNING_FUNCTION: Mapping[str, ChannelRole] = {
    "prune_out_channels": "out",
    "prune_depthwise_conv_out_channels": "out",
    "prune_in_channels": "in",
    "prune_depthwise_conv_in_channels": "out",  # one weight row per channel, so the slice is the same from either side
}
SECONDS_TO_TRACE = 120.0  # of processor time for one part; what finishes at all takes a tenth of it
BARE_PARAMETER = "it is combined with a parameter that belongs to no layer that can be sliced"
Indices = tuple[tuple[int, ...], ...]  # for each channel of a group, its indices in a layer's dimension


@dataclass(frozen=True)
class ParameterRows:
    """One parameter of a coupled layer, with a row for each channel of the group."""

    name: str  # "weight" | "bias"; of a norm its scale and its shift
    value: Tensor  # float32 [channels, values]
    gradient_moments: GradientMoments | None = None  # of the same shape; None where none were collected

    @property
    def gradient(self) -> Tensor:
        """Mean gradient of the loss over the images, float32 [channels, values]."""
        return self._require_gradients().mean

    @property
    def squared_gradient(self) -> Tensor:
        """Mean over the images of the squared gradient of each, float32 [channels, values]."""
        return self._require_gradients().mean_square

    def _require_gradients(self) -> GradientMoments:
        if self.gradient_moments is None:
            raise ToolchainError(
                "this pruning criterion reads gradients, and none were collected. "
                'Its file must say NEEDS = ("gradients",), and the caller must pass gradients of this model'
            )
        return self.gradient_moments


@dataclass(frozen=True)
class CoupledLayer:
    """The output or input side of a layer that reads or writes a group's channels.

    `channel_indices[c]` are the indices in the layer's own dimension that belong to the group's channel c; there are
    several where a flatten stands in between.
    """

    module_name: str
    layer_type: str  # "conv" | "depthwise" | "linear" | "norm"
    role: ChannelRole
    channel_indices: Indices
    parameters: tuple[ParameterRows, ...]  # the weight first; then the bias, on the output side of a layer that has one

    @property
    def weight(self) -> Tensor:
        """Float32 [channels, values]; the scale of a norm."""
        return self.parameters[0].value


@dataclass(frozen=True)
class PruningGroup:
    """Channels that can only be removed together, with all layers they are coupled to."""

    channels: int
    coupled_layers: tuple[CoupledLayer, ...]

    @property
    def layer_count(self) -> int:
        """Number of convolutions and linear layers that read or write these channels."""
        return sum(layer.layer_type != "norm" for layer in self.coupled_layers)

    @property
    def name(self) -> str:
        """The layer that produces these channels."""
        return self.coupled_layers[0].module_name

    @property
    def writers(self) -> tuple[str, ...]:
        """The layers and norms that write these channels."""
        return tuple(layer.module_name for layer in self.coupled_layers if layer.role == "out")

    @property
    def parameters(self) -> tuple[ParameterRows, ...]:
        """All parameters of all coupled layers."""
        return tuple(parameter for layer in self.coupled_layers for parameter in layer.parameters)


class UntraceableError(ToolchainError):
    """No channels of a model can be traced, so none can be pruned."""


@dataclass(frozen=True)
class PruningObstacle:
    """Layers whose output channels have to stay, and why."""

    layers: tuple[str, ...]
    reason: str


@dataclass(frozen=True)
class TracedChannels:
    """What tracing a model's channels gives."""

    groups: tuple[PruningGroup, ...]  # that can be pruned
    obstacles: tuple[PruningObstacle, ...]
    failures: tuple[tuple[str, Exception], ...]  # parts that cannot be traced, by name, and the error of each


def find(
    model: nn.Module, image: Tensor, head: str, gradients: Mapping[str, GradientMoments] | None = None
) -> tuple[PruningGroup, ...]:
    """Find every group of channels that can be pruned.

    Left out are groups whose channels reach the outputs of `head`, that run through a grouped convolution (which would
    have to keep equal shares in each of its groups), or that the dependency graph does not cover completely. A model
    that cannot be traced as a whole is traced in parts, and channels that leave a part stay.

    Args:
        model: the network, left as it was.
        image: one example input, float32 [1, 3, height, width].
        head: the layer whose outputs are the classes.
        gradients: by parameter name, for criteria that need them.

    Raises:
        UntraceableError: the dependency graph cannot be built for this model.
    """
    traced = trace_channels(model, image, head, gradients)
    failures = [reason for _, reason in traced.failures]
    if failures and not traced.groups:
        first = failures[0]
        raise UntraceableError(
            f"the channels of this model cannot be traced for pruning ({type(first).__name__}: {first}). "
            "Set [prune] ratio = 0 to continue without pruning"
        ) from first
    if failures:
        progress.log(
            "pruning: the model is traced in parts, and channels between parts are kept, because it cannot be traced as "
            f"a whole ({first_line(failures[0])})"
        )
    return traced.groups


def trace_channels(
    model: nn.Module, image: Tensor, head: str, gradients: Mapping[str, GradientMoments] | None = None,
    seconds: float = SECONDS_TO_TRACE,
) -> TracedChannels:  # fmt: skip
    """Return the groups of channels that can be pruned, and why the other channels have to stay. Raises nothing.

    Args: as for `find`; `seconds` of processor time for each part, after which it counts as one that cannot be traced.
    """
    import torch_pruning  # here, because the import takes a second, and replaying a plan does not need it

    model = copy.deepcopy(model).eval()  # tracing leaves hooks and gradients behind
    for parameter in model.parameters():
        parameter.requires_grad_(True)
    pending, failures = [TraceablePart("", model, image)], list[tuple[str, Exception]]()
    groups, obstacles = list[PruningGroup](), list[PruningObstacle]()
    while pending:
        part = pending.pop(0)
        try:
            with limit_seconds(seconds, torch_pruning.__name__):
                part_groups, part_obstacles = _trace(part, head, gradients or {})
            groups += part_groups
            obstacles += part_obstacles
        except Exception as reason:  # Torch-Pruning raises whatever its tracing met
            failures.append((part.name, reason))
            with suppress(Exception):  # a part that cannot be called again with its example input cannot be split
                pending += partial_tracing.split(part)
    return TracedChannels(tuple(groups), tuple(obstacles), tuple(failures))


def _trace(
    part: TraceablePart, head: str, gradients: Mapping[str, GradientMoments]
) -> tuple[list[PruningGroup], list[PruningObstacle]]:
    """Return the prunable groups of one part, without those whose channels enter or leave it, and why others stay."""
    import torch_pruning

    window_tensor = next((name for name, _ in _named_tensors(part.module) if WINDOW_ATTENTION_TENSOR in name), None)
    if window_tensor:
        raise ToolchainError(f"window attention ({part.full_name(window_tensor)}) cannot be traced")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about bare parameters, which are not pruned
        traced = part.module if not part.name else partial_tracing.FixedBoundary(part)
        graph = torch_pruning.DependencyGraph().build_dependency(traced, example_inputs=part.example_input)
        graph_groups = list(graph.get_all_groups(root_module_types=[nn.Conv2d, nn.Linear]))
    modules = {part.full_name(name): module for name, module in part.module.named_modules()}
    names = {module: name for name, module in modules.items()}
    candidates = [_read_group(graph_group, names, head, gradients) for graph_group in graph_groups]
    covered = _find_covered_sides([group for group, _ in candidates], modules)
    groups, obstacles = list[PruningGroup](), list[PruningObstacle]()
    for group, obstacle in candidates:
        lost = [layer for layer in group.coupled_layers if (layer.module_name, layer.role) not in covered]
        if obstacle is None and not lost:
            groups.append(group)
        elif obstacle is None:
            reason = (
                f"its channels are lost from sight on the way to {lost[0].module_name} (a reshape or concatenation)"
            )
            obstacles.append(PruningObstacle(group.writers, reason))
        elif obstacle.reason == BARE_PARAMETER and part.name:  # of the boundary
            reason = f"its channels enter or leave {part.name}, which is traced alone"
            obstacles.append(PruningObstacle(obstacle.layers, reason))
        else:
            obstacles.append(obstacle)
    return groups, obstacles


def _named_tensors(module: nn.Module) -> Iterable[tuple[str, Tensor]]:
    return chain(module.named_parameters(), module.named_buffers())


def _read_group(
    graph_group: Any, names: Mapping[nn.Module, str], head: str, gradients: Mapping[str, GradientMoments]
) -> tuple[PruningGroup, PruningObstacle | None]:
    """Convert a group of the dependency graph, and return with it why it may not lose channels; None where it may."""
    roots = sorted({root for item in graph_group.items for root in item.root_idxs})
    channel_of_root = {root: channel for channel, root in enumerate(roots)}
    layers: dict[tuple[str, ChannelRole], CoupledLayer] = {}
    obstacle, writers = "", dict[str, None]()
    for item in graph_group.items:
        module = item.dep.target.module
        if module not in names:
            # an operation of the graph, which has no parameters; or a bare parameter, which cannot be named
            if isinstance(module, nn.Parameter):
                obstacle = obstacle or BARE_PARAMETER
            continue
        name, role = names[module], ROLE_OF_PRUNING_FUNCTION.get(item.dep.handler.__name__)
        if role == "out" and isinstance(module, nn.Conv2d | nn.Linear):
            writers[name] = None
        refusal = _refuse(name, module, role, head)
        if refusal or role is None:
            obstacle = obstacle or refusal
            continue
        rows: list[list[int]] = [[] for _ in roots]
        for index, root in zip(item.idxs, item.root_idxs, strict=True):
            rows[channel_of_root[root]].append(int(index))
        indices = tuple(tuple(row) for row in rows)
        parameters = _read_parameters(name, module, role, indices, gradients)
        if not parameters:
            obstacle = obstacle or f"its channels do not divide evenly in {name}"
            continue
        layers.setdefault((name, role), CoupledLayer(name, _layer_type(module), role, indices, parameters))
    if not any(role == "out" for _, role in layers):
        obstacle = obstacle or "no layer that can be sliced writes its channels"
    group = PruningGroup(len(roots), tuple(layers.values()))
    return group, PruningObstacle(tuple(writers), obstacle) if obstacle else None


def _refuse(name: str, module: nn.Module, role: ChannelRole | None, head: str) -> str:
    """Return why channels that reach one side of a module have to stay; "" where they may go."""
    if name == head and role == "out":
        return "its outputs are the classes"
    if isinstance(module, nn.Conv2d) and module.groups > 1 and not is_depthwise(module):
        return f"it meets the grouped convolution {name} (groups={module.groups}), which would need equal shares in each group"
    if role is None or not isinstance(module, nn.Conv2d | nn.Linear | nn.modules.batchnorm._BatchNorm):
        return f"it meets {name} ({type(module).__name__}), whose channels cannot be sliced"
    return ""


def _find_covered_sides(
    groups: Sequence[PruningGroup], modules: Mapping[str, nn.Module]
) -> set[tuple[str, ChannelRole]]:
    """Return the sides of layers whose every channel is in exactly one group.

    Torch-Pruning 1.6.1 loses track of channels that run through a concatenation straight into a flatten. A group that
    misses channels, or claims those of another, would remove the wrong ones.
    """
    seen: dict[tuple[str, ChannelRole], list[int]] = defaultdict(list)
    for group in groups:
        for layer in group.coupled_layers:
            seen[layer.module_name, layer.role] += [index for row in layer.channel_indices for index in row]
    return {
        (name, role)
        for (name, role), indices in seen.items()
        if sorted(indices) == list(range(_side_channels(modules[name], role)))
    }


def _side_channels(module: nn.Module, role: ChannelRole) -> int:
    weight = module.weight
    assert isinstance(weight, Tensor)
    return weight.shape[0 if role == "out" else 1]


def _read_parameters(
    name: str, module: nn.Module, role: ChannelRole, indices: Indices, gradients: Mapping[str, GradientMoments]
) -> tuple[ParameterRows, ...]:
    """Return the parameters of a module that are removed with the channels.

    Empty where the module has no weight, or its channels have different numbers of indices.
    """
    parameters = dict(module.named_parameters(recurse=False))
    if "weight" not in parameters or any(not row or len(row) != len(indices[0]) for row in indices):
        return ()

    def read(parameter: str) -> ParameterRows:
        moments = gradients.get(f"{name}.{parameter}")
        rows = moments and GradientMoments(
            _channel_rows(moments.mean, role, indices), _channel_rows(moments.mean_square, role, indices)
        )
        return ParameterRows(parameter, _channel_rows(parameters[parameter].detach(), role, indices), rows)

    # the bias is added to the outputs, so it is not removed with the inputs
    with_bias = "bias" in parameters and role == "out"
    return tuple(read(parameter) for parameter in (("weight", "bias") if with_bias else ("weight",)))


def _channel_rows(tensor: Tensor, role: ChannelRole, indices: Indices) -> Tensor:
    """Return a parameter as float32 [channels, values]."""
    rows = tensor.float()
    rows = rows.transpose(0, 1) if role == "in" else rows
    rows = rows.reshape(rows.shape[0], -1)
    return torch.stack([rows[list(row)].flatten() for row in indices])


def _layer_type(module: nn.Module) -> str:
    if isinstance(module, nn.Conv2d):
        return "depthwise" if is_depthwise(module) else "conv"
    return "linear" if isinstance(module, nn.Linear) else "norm"
