"""The quantized activations of a Q/DQ graph: each named by the layer it belongs to, with its quantization step.

Parity compares a runtime with the torch model at these tensors, and reports which layers are planned to run in int8.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import onnx
from onnx import ModelProto, NodeProto, TensorProto, numpy_helper

from toolchain.export.onnx_graph import WEIGHTED_OPS

# nothing is computed here: a value quantized behind them was quantized before
DATA_MOVEMENT_OPS = {"Reshape", "Flatten", "Transpose", "Slice", "Split", "Squeeze", "Unsqueeze", "Pad", "Identity"}


@dataclass(frozen=True, kw_only=True)
class QuantizedTensor:
    """One quantized activation."""

    layer: str  # "features.0.0", "Add after features.3.conv.2", "input"
    tensor_name: str  # name of the dequantized value in the graph
    step: float  # its scale
    fusion_pattern: str  # operations that compute and read it; a runtime fuses all tensors of one pattern alike


@dataclass(frozen=True)
class QdqGraph:
    """A Q/DQ graph, with the node that computes each value and the nodes that read it."""

    model: ModelProto
    producers: dict[str, NodeProto]
    consumers: dict[str, list[NodeProto]]
    constants: dict[str, TensorProto]


def index_graph(model: ModelProto) -> QdqGraph:
    """Return the graph with the producer and the consumers of each value."""
    producers, consumers = dict[str, NodeProto](), dict[str, list[NodeProto]]()
    for node in model.graph.node:
        producers.update(dict.fromkeys(node.output, node))
        for name in node.input:
            consumers.setdefault(name, []).append(node)
    return QdqGraph(model, producers, consumers, {tensor.name: tensor for tensor in model.graph.initializer})


def find(graph: QdqGraph) -> tuple[QuantizedTensor, ...]:
    """Return every quantized output of a layer, addition, pooling or activation, in the order of the graph."""
    order = {node.output[0]: number for number, node in enumerate(graph.model.graph.node)}
    tensors = list[QuantizedTensor]()
    for node in graph.model.graph.node:
        if node.op_type != "QuantizeLinear" or node.input[0] in graph.constants or node.input[1] not in graph.constants:
            continue
        producer = graph.producers.get(node.input[0])
        dequantizes = [
            consumer for consumer in graph.consumers.get(node.output[0], ()) if consumer.op_type == "DequantizeLinear"
        ]
        if not dequantizes or (producer is not None and producer.op_type in DATA_MOVEMENT_OPS):
            continue
        scale = numpy_helper.to_array(graph.constants[node.input[1]])
        if scale.size != 1:
            continue
        layer = _layer_name(graph, producer, order)
        repetitions = sum(tensor.layer.split(" #")[0] == layer for tensor in tensors)
        tensors.append(
            QuantizedTensor(
                layer=layer + (f" #{repetitions + 1}" if repetitions else ""),
                tensor_name=dequantizes[0].output[0],
                step=float(scale.item()),
                fusion_pattern=_fusion_pattern(graph, producer, dequantizes),
            )
        )
    return tuple(tensors)


def output_step(graph: QdqGraph) -> float | None:
    """Return the scale of the Q/DQ pair in front of the logits; None where they are float."""
    last = graph.producers.get(graph.model.graph.output[0].name)
    if last is None or last.op_type != "DequantizeLinear" or last.input[1] not in graph.constants:
        return None
    return float(numpy_helper.to_array(graph.constants[last.input[1]]).item())


def read_output_step(path: Path) -> float | None:
    """Return the output step of an ONNX file, as `output_step` does."""
    return output_step(index_graph(onnx.load(path)))


def _layer_name(graph: QdqGraph, producer: NodeProto | None, order: dict[str, int]) -> str:
    if producer is None:
        return "input"
    if producer.op_type in WEIGHTED_OPS:
        return producer.name
    layer = _last_layer_before(graph, producer, order)
    return f"{producer.op_type} after {layer.name if layer else 'input'}"


def _last_layer_before(graph: QdqGraph, node: NodeProto, order: dict[str, int]) -> NodeProto | None:
    """Return, of the layers that a node's inputs come from, the one that is computed last."""
    layers, pending, visited = list[NodeProto](), list(node.input), set[str]()
    while pending:
        producer = graph.producers.get(pending.pop())
        if producer is None or producer.output[0] in visited:
            continue
        visited.add(producer.output[0])
        if producer.op_type in WEIGHTED_OPS:
            layers.append(producer)
        else:
            pending += producer.input
    return max(layers, key=lambda layer: order[layer.output[0]], default=None)


def _fusion_pattern(graph: QdqGraph, producer: NodeProto | None, dequantizes: Sequence[NodeProto]) -> str:
    consumers = {
        consumer.op_type for dequantize in dequantizes for consumer in graph.consumers.get(dequantize.output[0], ())
    }
    return f"{producer.op_type if producer else 'input'} to {', '.join(sorted(consumers)) or 'output'}"


def split_layers_by_precision(graph: QdqGraph) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Return the names of the layers whose image and weight are both quantized, and of those that stay in float."""
    int8_layers, float_layers = list[str](), list[str]()
    for node in graph.model.graph.node:
        if node.op_type in WEIGHTED_OPS:
            producers = [graph.producers.get(name) for name in node.input[:2]]
            quantized = all(producer is not None and producer.op_type == "DequantizeLinear" for producer in producers)
            (int8_layers if quantized else float_layers).append(node.name)
    return tuple(int8_layers), tuple(float_layers)


def add_outputs(model: ModelProto, tensors: Sequence[QuantizedTensor]) -> ModelProto:
    """Return a copy with the dequantized value of each tensor as a further output beside the logits.

    Dequantized, because an integer output would keep OpenVINO from seeing the Q/DQ pair behind it.
    """
    copy = ModelProto()
    copy.CopyFrom(model)
    outputs = {output.name for output in copy.graph.output}
    for tensor in tensors:
        if tensor.tensor_name not in outputs:
            copy.graph.output.append(onnx.helper.make_tensor_value_info(tensor.tensor_name, TensorProto.FLOAT, None))
    return copy
