"""Where a Q/DQ graph can be read: every rounded result, named by the layer it belongs to, with its quantization step."""

from collections.abc import Sequence
from dataclasses import dataclass

import onnx
from onnx import ModelProto, NodeProto, TensorProto, numpy_helper

WEIGHTED_OPS = {"Conv", "Gemm", "MatMul"}
# nothing is computed here: what is rounded behind them was rounded before
DATA_MOVEMENT_OPS = {"Reshape", "Flatten", "Transpose", "Slice", "Split", "Squeeze", "Unsqueeze", "Pad", "Identity"}


@dataclass(frozen=True, kw_only=True)
class QuantizedTensor:
    """One rounded result."""

    layer: str  # "features.0.0", "Add after features.3.conv.2", "input"
    tensor_name: str  # name of the dequantized value in the graph
    step: float  # its scale
    fusion_pattern: str  # what computes it and what reads it; runtimes fuse all of one kind in one way


@dataclass(frozen=True)
class QdqGraph:
    """A Q/DQ graph by who makes and who reads each value."""

    model: ModelProto
    producers: dict[str, NodeProto]
    consumers: dict[str, list[NodeProto]]
    constants: dict[str, TensorProto]


def index_graph(model: ModelProto) -> QdqGraph:
    """Looks up makers and readers once."""
    made, read = {}, dict[str, list[NodeProto]]()
    for node in model.graph.node:
        made.update(dict.fromkeys(node.output, node))
        for name in node.input:
            read.setdefault(name, []).append(node)
    return QdqGraph(model, made, read, {tensor.name: tensor for tensor in model.graph.initializer})


def find(graph: QdqGraph) -> tuple[QuantizedTensor, ...]:
    """Every rounded result of a layer, an addition, a pooling or an activation, in the order of the graph."""
    order = {node.output[0]: number for number, node in enumerate(graph.model.graph.node)}
    taps = list[QuantizedTensor]()
    for node in graph.model.graph.node:
        if node.op_type != "QuantizeLinear" or node.input[0] in graph.constants or node.input[1] not in graph.constants:
            continue
        maker = graph.producers.get(node.input[0])
        behind = [reader for reader in graph.consumers.get(node.output[0], ()) if reader.op_type == "DequantizeLinear"]
        if not behind or (maker is not None and maker.op_type in DATA_MOVEMENT_OPS):
            continue
        scale = numpy_helper.to_array(graph.constants[node.input[1]])
        if scale.size != 1:
            continue
        taken = sum(tap.layer.split(" #")[0] == _name(graph, maker, order) for tap in taps)
        name = _name(graph, maker, order) + (f" #{taken + 1}" if taken else "")
        taps.append(
            QuantizedTensor(
                layer=name,
                tensor_name=behind[0].output[0],
                step=float(scale.item()),
                fusion_pattern=_kind(graph, maker, behind),
            )
        )
    return tuple(taps)


def output_step(graph: QdqGraph) -> float | None:
    """Scale of the rounding in front of the logits; None where they come in float."""
    last = graph.producers.get(graph.model.graph.output[0].name)
    if last is None or last.op_type != "DequantizeLinear" or last.input[1] not in graph.constants:
        return None
    return float(numpy_helper.to_array(graph.constants[last.input[1]]).item())


def _name(graph: QdqGraph, maker: NodeProto | None, order: dict[str, int]) -> str:
    if maker is None:
        return "input"
    if maker.op_type in WEIGHTED_OPS:
        return maker.name
    layer = _last_layer(graph, maker, order)
    return f"{maker.op_type} after {layer.name if layer else 'input'}"


def _last_layer(graph: QdqGraph, node: NodeProto, order: dict[str, int]) -> NodeProto | None:
    """Of the layers a node's inputs come from, the one that is computed last."""
    found, waiting, seen = list[NodeProto](), list(node.input), set[str]()
    while waiting:
        maker = graph.producers.get(waiting.pop())
        if maker is None or maker.output[0] in seen:
            continue
        seen.add(maker.output[0])
        if maker.op_type in WEIGHTED_OPS:
            found.append(maker)
        else:
            waiting += maker.input
    return max(found, key=lambda layer: order[layer.output[0]], default=None)


def _kind(graph: QdqGraph, maker: NodeProto | None, behind: Sequence[NodeProto]) -> str:
    readers = {reader.op_type for node in behind for reader in graph.consumers.get(node.output[0], ())}
    return f"{maker.op_type if maker else 'input'} to {', '.join(sorted(readers)) or 'output'}"


def split_layers_by_precision(graph: QdqGraph) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Convolution and linear layers whose image and weight both come rounded, and those that are to stay in float."""
    integer, in_float = list[str](), list[str]()
    for node in graph.model.graph.node:
        if node.op_type in WEIGHTED_OPS:
            makers = [graph.producers.get(name) for name in node.input[:2]]
            rounded = all(maker is not None and maker.op_type == "DequantizeLinear" for maker in makers)
            (integer if rounded else in_float).append(node.name)
    return tuple(integer), tuple(in_float)


def add_outputs(model: ModelProto, taps: Sequence[QuantizedTensor]) -> ModelProto:
    """A copy that gives the dequantized value of each tap beside the logits.

    Dequantized, because an integer output would keep OpenVINO from seeing the Q/DQ pair behind it.
    """
    copy = ModelProto()
    copy.CopyFrom(model)
    given = {output.name for output in copy.graph.output}
    for tap in taps:
        if tap.tensor_name not in given:
            copy.graph.output.append(onnx.helper.make_tensor_value_info(tap.tensor_name, TensorProto.FLOAT, None))
    return copy
