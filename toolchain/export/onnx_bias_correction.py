"""Bias correction of a Q/DQ graph: each layer gets the mean of its float output back, on request its deviation too.

The same correction as `quantization.bias_correction` does on torch's graph. Here the float statistics come from one pass of
the float graph; the Q/DQ graph is run in segments that end at a layer each, so that a layer is corrected before the next
one sees its output.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import torch
from torch import Tensor

from toolchain.core import files
from toolchain.export import onnx_graph, onnx_ranges
from toolchain.export.onnx_graph import WEIGHTED_OPS, add_initializer, constant_value, producer_of_type
from toolchain.export.onnx_model import OnnxModule
from toolchain.export.passes import cleanup
from toolchain.export.runtimes import onnxruntime
from toolchain.quantization.bias_correction import weight_factor

Values = dict[str, list[np.ndarray]]  # a value's arrays, one for each image


@dataclass(frozen=True)
class OutputStatistics:
    """Mean and standard deviation [channels] of a layer's float output."""

    mean: np.ndarray
    std: np.ndarray


@dataclass(frozen=True)
class CorrectedLayer:
    """A layer of a graph: the node that adds its bias, and the input of that node which is the bias."""

    node: ir.Node  # the product
    last: ir.Node  # the node whose output is the layer's: the product, or the addition of its bias
    bias_index: int | None  # None: it has no bias and is not corrected

    @property
    def channel_axis(self) -> int:
        """Dimension of the channels in the output."""
        return 1 if self.node.op_type == "Conv" else -1


def list_layers(graph: ir.Graph) -> list[CorrectedLayer]:
    """Return the layers with constant weights, in running order."""
    layers = []
    for node in graph:
        if node.op_type not in WEIGHTED_OPS:
            continue
        weight = producer_of_type(node, "DequantizeLinear", 1)
        if weight is None and constant_value(node.inputs[1]) is None:
            continue
        layers.append(_find_bias(node))
    return layers


def _find_bias(node: ir.Node) -> CorrectedLayer:
    if node.op_type != "MatMul":
        has_bias = len(node.inputs) > 2 and constant_value(node.inputs[2]) is not None
        return CorrectedLayer(node, node, 2 if has_bias else None)
    readers = onnx_graph.readers_of(node.outputs[0])
    if len(readers) == 1 and readers[0].op_type == "Add":
        for index, value in enumerate(readers[0].inputs):
            if constant_value(value) is not None:
                return CorrectedLayer(node, readers[0], index)
    return CorrectedLayer(node, node, None)


def measure_float(model: OnnxModule, images: Sequence[Tensor], folder: Path) -> list[OutputStatistics]:
    """Return the statistics of every layer's output in the float graph, in running order.

    Args:
        model: the float graph.
        images: normalised, each float32 [1, 3, height, width].
        folder: for a temporary file.
    """
    layers = list_layers(model.graph.graph)
    names = [str(layer.last.outputs[0].name) for layer in layers]
    sums: list[list[np.ndarray]] = [[] for _ in layers]
    for _, values in onnx_ranges.observe_values(model, names, images, folder):
        for layer, name, collected in zip(layers, names, sums, strict=True):
            rows = _channels_last(values[name].numpy(), layer.channel_axis).astype(np.float64)
            collected.append(np.stack([rows.sum(0), (rows**2).sum(0), np.full(rows.shape[1], len(rows))]))
    return [_finish(np.sum(collected, axis=0)) for collected in sums]


def _finish(totals: np.ndarray) -> OutputStatistics:
    """Return mean and standard deviation from sums, sums of squares and counts, float64 [3, channels]."""
    total, squares, count = totals
    mean = total / count
    return OutputStatistics(mean, np.sqrt(np.maximum(squares - count * mean**2, 0) / np.maximum(count - 1, 1)))


def _channels_last(value: np.ndarray, axis: int) -> np.ndarray:
    """Return values as rows, [values of a channel, channels]."""
    return np.moveaxis(value, axis, -1).reshape(-1, value.shape[axis])


def correct_layers(
    model: ir.Model, expected: Sequence[OutputStatistics], images: Sequence[Tensor], folder: Path, *, match_std: bool
) -> int:
    """Restore the float mean of every layer's output, on request its standard deviation, in running order.

    Args:
        model: as `insert_qdq.insert` returns it; its biases and the scales of its weights change.
        expected: of the float graph's layers, in the same order.
        images: normalised, each float32 [1, 3, height, width].
        folder: for temporary files.
        match_std: correct standard deviations as well as means.

    Returns:
        the number of corrected layers; a layer without a bias is not corrected.
    """
    graph = model.graph
    layers, corrected = list_layers(graph), 0
    values: Values = {str(graph.inputs[0].name): [image.numpy() for image in images]}
    ends = {layer.last: (layer, statistics) for layer, statistics in zip(layers, expected, strict=True)}
    for segment in _split(list(graph), set(ends)):
        _run_segment(model, segment, values, folder)
        if segment[-1] in ends:
            layer, statistics = ends[segment[-1]]
            if layer.bias_index is not None:
                _correct_layer(graph, layer, statistics, values, match_std=match_std)
                corrected += 1
        _drop_read_values(graph, segment, values)
    return corrected


def _split(nodes: Sequence[ir.Node], ends: set[ir.Node]) -> Iterator[list[ir.Node]]:
    """Yield the nodes in segments, each with one layer at its end; what follows the last layer changes no layer."""
    segment: list[ir.Node] = []
    for node in nodes:
        segment.append(node)
        if node in ends:
            yield segment
            segment = []


def _run_segment(model: ir.Model, segment: Sequence[ir.Node], values: Values, folder: Path) -> None:
    """Compute the values of a segment for all images and add those that anything reads."""
    read = {str(value.name): value for node in segment for value in node.inputs if value is not None}
    constants = [value for value in read.values() if value.const_value is not None]
    inputs = [value for name, value in read.items() if name in values]
    outputs = [value for node in segment for value in node.outputs if _is_read_outside(value, segment)]
    proto = onnx.helper.make_model(
        onnx.helper.make_graph(
            [ir.serde.serialize_node(node) for node in segment], "segment",
            [onnx.helper.make_tensor_value_info(str(value.name), 1, values[str(value.name)][0].shape) for value in inputs],
            [onnx.helper.make_empty_tensor_value_info(str(value.name)) for value in outputs],
            [ir.serde.serialize_tensor(_named(value)) for value in constants],
        ),
        opset_imports=[onnx.helper.make_opsetid("", model.opset_imports[""])],
        ir_version=min(model.ir_version, cleanup.MAX_IR_VERSION),
    )  # fmt: skip
    path = folder / "segment.onnx"
    with files.open_atomic(path) as out:
        out.write(proto.SerializeToString())
    session = onnxruntime.open(path, threads=torch.get_num_threads(), precision="f32", optimized=False)
    path.unlink()
    names = [str(value.name) for value in inputs]
    computed = [
        session.compute(dict(zip(names, arrays, strict=True)))
        for arrays in zip(*(values[name] for name in names), strict=True)
    ]
    for value in outputs:
        values[str(value.name)] = [row[str(value.name)] for row in computed]


def _named(value: ir.Value) -> ir.TensorProtocol:
    """Return a constant under the name that the nodes read it by."""
    assert value.const_value is not None
    return ir.tensor(value.const_value.numpy(), name=value.name)


def _is_read_outside(value: ir.Value, segment: Sequence[ir.Node]) -> bool:
    inside = set(segment)
    return value.is_graph_output() or not value.uses() or any(use.node not in inside for use in value.uses())


def _drop_read_values(graph: ir.Graph, segment: Sequence[ir.Node], values: Values) -> None:
    """Forget the values that no node behind the segment reads: those of all images together are large."""
    nodes = list(graph)
    behind = nodes[nodes.index(segment[-1]) + 1 :]
    still_read = {str(value.name) for node in behind for value in node.inputs if value is not None}
    for name in [name for name in values if name not in still_read]:
        del values[name]


def _correct_layer(
    graph: ir.Graph, layer: CorrectedLayer, expected: OutputStatistics, values: Values, *, match_std: bool
) -> None:
    """Correct one layer's bias and, on request, the scales of its weights; and its values, which the next layers read."""
    assert layer.bias_index is not None
    name, axis = str(layer.last.outputs[0].name), layer.channel_axis
    arrays = values[name]
    bias = np.array(constant_value(layer.last.inputs[layer.bias_index]), np.float32).reshape(-1)
    rows = np.concatenate([_channels_last(array, axis) for array in arrays])
    factor = np.ones(rows.shape[1], np.float32)
    if match_std:
        actual_std = torch.from_numpy(rows.std(0, ddof=1))
        factor = weight_factor(torch.from_numpy(expected.std.astype(np.float32)), actual_std).numpy()
        _scale_weight(graph, layer, factor)
    mean = (rows.mean(0, dtype=np.float64) - bias) * factor + bias
    shift = (expected.mean - mean).astype(np.float32)
    new_bias = add_initializer(graph, f"{layer.node.outputs[0].name}.corrected_bias", bias + shift)
    layer.last.replace_input_with(layer.bias_index, new_bias)
    shape = [1] * arrays[0].ndim
    shape[axis] = -1
    for index, array in enumerate(arrays):
        old, scale, added = (part.reshape(shape) for part in (bias, factor, shift))
        arrays[index] = ((array - old) * scale + old + added).astype(np.float32)


def _scale_weight(graph: ir.Graph, layer: CorrectedLayer, factor: np.ndarray) -> None:
    """Multiply a layer's weights by a factor for each channel [channels]: its scales, where the weights are int8."""
    dequantize = producer_of_type(layer.node, "DequantizeLinear", 1)
    node = layer.node if dequantize is None else dequantize
    array = constant_value(node.inputs[1])
    assert array is not None
    if dequantize is None:
        channel = array.ndim - 1 if layer.node.op_type == "MatMul" else 0
        factor = factor.reshape([-1 if i == channel else 1 for i in range(array.ndim)])
    name = f"{layer.node.outputs[0].name}.corrected_{'weight' if dequantize is None else 'scale'}"
    node.replace_input_with(1, add_initializer(graph, name, (array * factor).astype(np.float32)))
