"""Corrections for the shift that quantization causes: each layer gets the mean of its float output back, on request its
standard deviation too. The graph is run in float and quantized side by side, layer by layer, over a few images.
"""

import torch
from torch import Tensor, nn
from torch.fx import GraphModule, Node
from torch.fx.node import Argument, map_arg

from toolchain.quantization import fx_graph

MAX_STRETCH = 1.5  # factor by which a correction may stretch a channel; rounding alone needs no more

NodeValues = dict[Node, object]


def correct_layers(graph: GraphModule, images: Tensor, *, match_std: bool) -> int:
    """Restore the float mean of every layer's output, on request its standard deviation, in running order.

    The inputs of a layer are corrected before the layer itself. The mean goes into the bias (bias correction: Nagel et
    al., arXiv 1906.04721, with means observed on images instead of computed). Matching the standard deviation is what
    re-estimating batch norm does where it is not folded yet (Sun et al., arXiv 1909.13720): a factor on a channel's
    weights, which changes their scale and none of their int8 values. Changes `graph`.

    Args:
        graph: calibrated, rounding switched on.
        images: normalised, float32 [n, 3, height, width].
        match_std: correct standard deviations as well as means.

    Returns:
        the number of corrected layers; a layer without a bias is not corrected.
    """
    float_values: NodeValues = {}
    quantized_values: NodeValues = {}
    pending_reads = {node: len(node.users) for node in graph.graph.nodes}
    corrected = 0
    with torch.inference_mode():
        for node in graph.graph.nodes:
            float_values[node], quantized_values[node] = _run_node(graph, node, float_values, quantized_values, images)
            if node.target in fx_graph.LAYER_TARGETS and len(node.args) > 2 and isinstance(node.args[2], Node):
                _correct_layer(graph, node, float_values, quantized_values, match_std)
                corrected += 1
            for source in node.all_input_nodes:  # activations of all images are large: free each after its last reader
                pending_reads[source] -= 1
                if pending_reads[source] == 0:
                    del float_values[source], quantized_values[source]
    return corrected


def _run_node(
    graph: GraphModule, node: Node, float_values: NodeValues, quantized_values: NodeValues, images: Tensor
) -> tuple[object, object]:
    """Return one node's value in float and quantized."""
    if node.op == "placeholder":
        return images, images
    if node.op == "get_attr":
        value = _attribute(graph, str(node.target))
        return value, value

    def inputs(values: NodeValues) -> tuple[tuple[Argument, ...], dict[str, Argument]]:
        return map_arg(node.args, values.__getitem__), map_arg(node.kwargs, values.__getitem__)  # type: ignore[arg-type]

    if node.op == "output":
        return None, None
    if fx_graph.is_fake_quantize(graph, node):
        return inputs(float_values)[0][0], graph.get_submodule(str(node.target))(*inputs(quantized_values)[0])
    operation = graph.get_submodule(str(node.target)) if node.op == "call_module" else node.target
    assert callable(operation)
    results = []
    for values in (float_values, quantized_values):
        arguments, keywords = inputs(values)
        results.append(operation(*arguments, **keywords))
    return results[0], results[1]


def _correct_layer(
    graph: GraphModule, node: Node, float_values: NodeValues, quantized_values: NodeValues, match_std: bool
) -> None:
    expected, actual = float_values[node], quantized_values[node]
    assert isinstance(expected, Tensor)
    assert isinstance(actual, Tensor)
    all_but_channels, shape = [0, *range(2, expected.ndim)], (1, -1, *([1] * (expected.ndim - 2)))
    bias = _attribute(graph, str(node.args[2].target))  # type: ignore[union-attr]
    if match_std:
        factor = weight_factor(expected.std(all_but_channels), actual.std(all_but_channels))
        weight = _float_weight(graph, node)
        weight.data.mul_(factor.reshape(-1, *([1] * (weight.ndim - 1))))
        actual = (actual - bias.reshape(shape)) * factor.reshape(shape) + bias.reshape(shape)
    shift = (expected - actual).mean(all_but_channels)
    quantized_values[node] = actual + shift.reshape(shape)
    bias.data.add_(shift)


def weight_factor(expected_std: Tensor, actual_std: Tensor) -> Tensor:
    """Return the factor for each channel's weights [channels]; 1 for a channel that is almost constant."""
    factor = (expected_std / actual_std.clamp_min(1e-12)).clamp(1 / MAX_STRETCH, MAX_STRETCH)
    return torch.where(
        torch.minimum(expected_std, actual_std) > 1e-3 * expected_std.max(), factor, torch.ones_like(factor)
    )


def _float_weight(graph: GraphModule, layer: Node) -> Tensor:
    """Return the float weight that a layer's fake quantization reads."""
    source = layer.args[1]
    while isinstance(source, Node) and source.op != "get_attr":
        source = source.all_input_nodes[0]
    assert isinstance(source, Node)
    return _attribute(graph, str(source.target))


def _attribute(graph: nn.Module, path: str) -> Tensor:
    parent, _, name = path.rpartition(".")
    value: Tensor = getattr(graph.get_submodule(parent) if parent else graph, name)
    return value
