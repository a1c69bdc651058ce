"""Collects the extremes of every activation of a float graph, image by image, and which channels never change."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, fx
from torch.fx import GraphModule, Node

from toolchain.core.errors import ToolchainError
from toolchain.quantization import fx_graph

MIN_IMAGES = 16  # images that show that something never happens


@dataclass(kw_only=True)
class ActivationExtremes:
    """What one value of the graph was."""

    module: str
    layer: str  # the convolution or linear module that makes it, perhaps before a rectifier; "" for any other
    channels_last: bool  # whether its channels are the last dimension, not the second
    derived: bool  # only reshaped or pooled from one that is looked at itself: judged there
    clip_bounds: tuple[float, float] | None  # values outside are clipped; None where it stays in float
    image_low: Tensor = field(default_factory=lambda: torch.empty(0))  # [images]
    image_high: Tensor = field(default_factory=lambda: torch.empty(0))  # [images]
    clipped_share: Tensor = field(
        default_factory=lambda: torch.empty(0)
    )  # [images] share of the values outside the bounds
    channel_low: Tensor = field(default_factory=lambda: torch.tensor(torch.inf))  # [channels]
    channel_high: Tensor = field(default_factory=lambda: torch.tensor(-torch.inf))  # [channels]


@dataclass(frozen=True, kw_only=True)
class ActivationStatistics:
    """What a set of images did in the graph."""

    image_count: int
    all_identical: bool
    input_moments: Tensor  # [images, 2 x channels] mean, then standard deviation of every colour channel
    activations: tuple[ActivationExtremes, ...]  # in running order


class _Watch(fx.Interpreter):
    """Runs a graph in float and notes the extremes of the values that are looked at."""

    def __init__(self, graph: GraphModule, found: Mapping[Node, ActivationExtremes]) -> None:
        super().__init__(graph)
        self.found, self.images = found, 0
        self.extra_traceback = False  # it would write fx's own words into our errors
        self.roundings = {node for node in graph.graph.nodes if fx_graph.is_fake_quantize(graph, node)}

    def run_node(self, n: Node) -> Any:
        if n in self.roundings:
            return self.fetch_args_kwargs_from_env(n)[0][0]
        value = super().run_node(n)
        if n.op == "placeholder":
            self.images = len(value)
        if n in self.found and value.ndim and value.shape[0] % self.images == 0:  # images are its first dimension
            _note(self.found[n], value.unflatten(0, (self.images, -1)))
        return value


def collect_statistics(graph: GraphModule, batches: Iterable[Tensor], label: str) -> ActivationStatistics:
    """Runs the images through the graph once, in float.

    Args:
        graph: calibrated; not changed.
        batches: normalised images, float32 [n, 3, height, width].
        label: what the images are, for messages.

    Raises:
        ToolchainError: there are no images; a range or a value is NaN or infinite.
    """
    found = _activations(graph)
    watch = _Watch(graph, found)
    inputs: list[Tensor] = []
    first, identical = None, True
    with torch.inference_mode():
        for batch in batches:
            if len(batch) == 0:
                continue
            first = batch[:1] if first is None else first
            identical = identical and bool((batch == first).all())
            inputs.append(torch.cat([batch.mean((2, 3)), batch.std((2, 3), correction=0)], 1))
            watch.run(batch)
    if not inputs:
        raise ToolchainError(
            f"there are no {label} images, and ranges cannot be checked without: put images into the domain's folder "
            f"and set its calibration_images to 256, or to {MIN_IMAGES} at the least"
        )
    stacked, seen = torch.cat(inputs), tuple(found.values())
    return ActivationStatistics(
        image_count=len(stacked), all_identical=identical, input_moments=stacked, activations=seen
    )


def _activations(graph: GraphModule) -> dict[Node, ActivationExtremes]:
    """Everything that is rounded, and the end of every layer, with nothing noted yet."""
    bounds: dict[Node, tuple[float, float]] = {}
    layers: dict[Node, Node] = {}
    for node in graph.graph.nodes:
        if fx_graph.is_fake_quantize(graph, node):
            source = fx_graph.find_float_source(graph, node)
            if source.op != "get_attr":  # a weight
                bounds.setdefault(source, _bounds(graph, node, _name(source)))
        elif node.target in fx_graph.LAYER_TARGETS:
            behind = list(node.users)
            rectified = len(behind) == 1 and fx_graph.OPERATION_KINDS.get(behind[0].target) == "rectifier"
            layers[behind[0] if rectified else node] = node
    linear = torch.ops.aten.linear.default
    return {
        node: ActivationExtremes(
            module=_name(node), layer=_name(layers[node]) if node in layers else "",
            channels_last=node in layers and layers[node].target is linear,
            derived=fx_graph.OPERATION_KINDS.get(node.target) == "keep", clip_bounds=bounds.get(node),
        )
        for node in graph.graph.nodes if node in bounds or node in layers
    }  # fmt: skip


def _name(node: Node) -> str:
    """What a person calls it: its module, or the operation where that is the model itself."""
    return "input" if node.op == "placeholder" else fx_graph.module_name(node) or node.name


def _bounds(graph: GraphModule, node: Node, module: str) -> tuple[float, float]:
    """The outermost values that still round to an integer."""
    point: Any = graph.get_submodule(str(node.target))
    scale, zero_point = float(point.scale), int(point.zero_point)
    reach = torch.stack([point.activation_post_process.min_val, point.activation_post_process.max_val])
    if not (bool(reach.isfinite().all()) and 0 < scale < torch.inf):
        low, high = reach.flatten().tolist()
        raise ToolchainError(
            f"{module}: its range is {low:g} to {high:g} and its scale {scale:g}; both must be finite: calibrate it on "
            "images, look for NaN in them, or leave the module in float"
        )
    return (point.quant_min - zero_point - 0.5) * scale, (point.quant_max - zero_point + 0.5) * scale


def _note(seen: ActivationExtremes, value: Tensor) -> None:
    """Adds a batch [images, parts, ...] to what was seen."""
    channels = value.ndim - 1 if seen.channels_last else min(2, value.ndim - 1)
    others = [dim for dim in range(1, value.ndim) if dim != channels]
    lows, highs = value.amin(others), value.amax(others)  # [images, channels]
    low, high = lows.amin(1), highs.amax(1)
    if not bool((low.isfinite() & high.isfinite()).all()):
        raise ToolchainError(
            f"{seen.module}: NaN or infinite values in it, though all weights are finite; look for them in the images, "
            "train again with a lower learning_rate, or leave the module in float"
        )
    clipped = torch.zeros_like(low)
    if seen.clip_bounds:
        outside = (low < seen.clip_bounds[0]) | (high > seen.clip_bounds[1])
        if bool(outside.any()):  # rarely: the values are gone through once more
            part = value[outside]
            clipped[outside] = ((part < seen.clip_bounds[0]) | (part > seen.clip_bounds[1])).flatten(1).float().mean(1)
    seen.image_low, seen.image_high = torch.cat([seen.image_low, low]), torch.cat([seen.image_high, high])
    seen.clipped_share = torch.cat([seen.clipped_share, clipped])
    seen.channel_low = torch.minimum(seen.channel_low, lows.amin(0))
    seen.channel_high = torch.maximum(seen.channel_high, highs.amax(0))
