"""Statistics of activations over a set of images: extremes and clipped share by image, extremes by channel.

The images go through the calibrated graph once, in float: fake quantizations are skipped, never run, so nothing in them
can change. Extremes are enough to judge the ranges, and they take little memory.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, fx
from torch.fx import GraphModule, Node

from toolchain.core.errors import ToolchainError
from toolchain.quantization import fx_graph

MIN_IMAGES = 16  # fewer images cannot show that something never happens


@dataclass(kw_only=True)
class ActivationExtremes:
    """The extremes of one activation in the graph."""

    module: str
    layer: str  # the convolution or linear module that computes it, perhaps before a rectifier; "" for any other
    channels_last: bool  # whether its channels are the last dimension, not the second
    derived: bool  # only reshaped or pooled from an activation that is measured itself and judged there
    clip_bounds: tuple[float, float] | None  # values outside are clipped; None where it stays in float
    image_low: Tensor = field(default_factory=lambda: torch.empty(0))  # [images]
    image_high: Tensor = field(default_factory=lambda: torch.empty(0))  # [images]
    clipped_share: Tensor = field(default_factory=lambda: torch.empty(0))  # [images] share of values that are clipped
    channel_low: Tensor = field(default_factory=lambda: torch.tensor(torch.inf))  # [channels]
    channel_high: Tensor = field(default_factory=lambda: torch.tensor(-torch.inf))  # [channels]


@dataclass(frozen=True, kw_only=True)
class ActivationStatistics:
    """The statistics of all activations over a set of images."""

    image_count: int
    all_identical: bool
    input_moments: Tensor  # [images, 2 x channels] mean, then standard deviation of every colour channel
    activations: tuple[ActivationExtremes, ...]  # in running order


class _ExtremesRecorder(fx.Interpreter):
    """Runs a graph in float and records the extremes of the chosen activations."""

    def __init__(self, graph: GraphModule, activations: Mapping[Node, ActivationExtremes]) -> None:
        super().__init__(graph)
        self.activations, self.batch_size = activations, 0
        self.extra_traceback = False  # it would add fx's own words to our messages
        self.fake_quantizes = {node for node in graph.graph.nodes if fx_graph.is_fake_quantize(graph, node)}

    def run_node(self, n: Node) -> Any:
        if n in self.fake_quantizes:
            return self.fetch_args_kwargs_from_env(n)[0][0]
        value = super().run_node(n)
        if n.op == "placeholder":
            self.batch_size = len(value)
        # only where the first dimension is images, or several rows for each image
        if n in self.activations and value.ndim and value.shape[0] % self.batch_size == 0:
            _add_batch(self.activations[n], value.unflatten(0, (self.batch_size, -1)))
        return value


def collect_statistics(graph: GraphModule, batches: Iterable[Tensor], label: str) -> ActivationStatistics:
    """Run the images through the graph once, in float, and return the statistics of its activations.

    Args:
        graph: calibrated; not changed.
        batches: normalised images, float32 [n, 3, height, width].
        label: name of the images in messages: "calibration" or "validation".

    Raises:
        ToolchainError: there are no images; a range or a value is NaN or infinite.
    """
    activations = _list_activations(graph)
    recorder = _ExtremesRecorder(graph, activations)
    moments: list[Tensor] = []
    first, identical = None, True
    with torch.inference_mode():
        for batch in batches:
            if len(batch) == 0:
                continue
            first = batch[:1] if first is None else first
            identical = identical and bool((batch == first).all())
            moments.append(torch.cat([batch.mean((2, 3)), batch.std((2, 3), correction=0)], 1))
            recorder.run(batch)
    if not moments:
        raise ToolchainError(
            f"there are no {label} images, and without them the ranges cannot be checked: put images into the domain's "
            f"folder and set its calibration_images to 256, or to at least {MIN_IMAGES}"
        )
    input_moments = torch.cat(moments)
    return ActivationStatistics(
        image_count=len(input_moments),
        all_identical=identical,
        input_moments=input_moments,
        activations=tuple(activations.values()),
    )


def _list_activations(graph: GraphModule) -> dict[Node, ActivationExtremes]:
    """Return every quantized activation and the output of every layer, with no extremes recorded yet."""
    bounds: dict[Node, tuple[float, float]] = {}
    layers: dict[Node, Node] = {}  # the node whose value is a layer's output -> the layer
    for node in graph.graph.nodes:
        if fx_graph.is_fake_quantize(graph, node):
            source = fx_graph.find_float_source(graph, node)
            if source.op != "get_attr":  # "get_attr" is a weight
                bounds.setdefault(source, _clip_bounds(graph, node, _display_name(source)))
        elif node.target in fx_graph.LAYER_TARGETS:
            readers = list(node.users)
            rectified = len(readers) == 1 and fx_graph.OPERATION_KINDS.get(readers[0].target) == "rectifier"
            layers[readers[0] if rectified else node] = node
    linear = torch.ops.aten.linear.default
    return {
        node: ActivationExtremes(
            module=_display_name(node), layer=_display_name(layers[node]) if node in layers else "",
            channels_last=node in layers and layers[node].target is linear,
            derived=fx_graph.OPERATION_KINDS.get(node.target) == "keep", clip_bounds=bounds.get(node),
        )
        for node in graph.graph.nodes if node in bounds or node in layers
    }  # fmt: skip


def _display_name(node: Node) -> str:
    """Return a node's name in messages: its module, or the operation where that is the model itself."""
    return "input" if node.op == "placeholder" else fx_graph.module_name(node) or node.name


def _clip_bounds(graph: GraphModule, node: Node, module: str) -> tuple[float, float]:
    """Return the outermost values that still round to an integer of the range."""
    quantizer: Any = graph.get_submodule(str(node.target))
    scale, zero_point = float(quantizer.scale), int(quantizer.zero_point)
    observed = torch.stack([quantizer.activation_post_process.min_val, quantizer.activation_post_process.max_val])
    if not (bool(observed.isfinite().all()) and 0 < scale < torch.inf):
        low, high = observed.flatten().tolist()
        raise ToolchainError(
            f"{module}: its range is {low:g} to {high:g} and its scale {scale:g}; both must be finite: calibrate it on "
            "images, look for NaN in them, or leave the module in float"
        )
    return (quantizer.quant_min - zero_point - 0.5) * scale, (quantizer.quant_max - zero_point + 0.5) * scale


def _add_batch(activation: ActivationExtremes, value: Tensor) -> None:
    """Add a batch [images, rows of an image, ...] to an activation's extremes."""
    channels = value.ndim - 1 if activation.channels_last else min(2, value.ndim - 1)
    all_but_channels = [dim for dim in range(1, value.ndim) if dim != channels]
    lows, highs = value.amin(all_but_channels), value.amax(all_but_channels)  # [images, channels]
    low, high = lows.amin(1), highs.amax(1)
    if not bool((low.isfinite() & high.isfinite()).all()):
        raise ToolchainError(
            f"{activation.module}: NaN or infinite values, though all weights are finite; look for them in the images, "
            "train again with a lower learning_rate, or leave the module in float"
        )
    clipped = torch.zeros_like(low)
    if activation.clip_bounds:
        lowest, highest = activation.clip_bounds
        outside = (low < lowest) | (high > highest)
        if bool(outside.any()):  # rare, so the second pass over the values costs little
            part = value[outside]
            clipped[outside] = ((part < lowest) | (part > highest)).flatten(1).float().mean(1)
    activation.image_low = torch.cat([activation.image_low, low])
    activation.image_high = torch.cat([activation.image_high, high])
    activation.clipped_share = torch.cat([activation.clipped_share, clipped])
    activation.channel_low = torch.minimum(activation.channel_low, lows.amin(0))
    activation.channel_high = torch.maximum(activation.channel_high, highs.amax(0))
