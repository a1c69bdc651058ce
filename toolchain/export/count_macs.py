"""Multiply-accumulates (MACs) of an ONNX graph, for models that come without a count."""

import math
from collections.abc import Mapping
from pathlib import Path

import onnx

Shape = tuple[int, ...]


def count(path: Path) -> int | None:
    """Return the MACs of convolutions and matrix products for one image; None where a shape is unknown."""
    try:
        model = onnx.shape_inference.infer_shapes(
            onnx.load(path, load_external_data=False), strict_mode=False, data_prop=True
        )
    except Exception:  # a graph that onnx cannot read may still run
        return None
    graph = model.graph
    shapes = {tensor.name: tuple(tensor.dims) for tensor in graph.initializer}
    for value in (*graph.input, *graph.value_info, *graph.output):
        dims = value.type.tensor_type.shape.dim
        shapes[value.name] = tuple(dim.dim_value or 1 for dim in dims)  # a dynamic dimension is the batch size
    total = 0
    for node in graph.node:
        macs = _count_node(node, shapes)
        if macs is None:
            return None
        total += macs
    return total


def _count_node(node: onnx.NodeProto, shapes: Mapping[str, Shape]) -> int | None:
    """Return the MACs of one node, 0 for other operations; None where a shape is unknown."""
    if node.op_type == "Conv":
        kernel, output = shapes.get(node.input[1]), shapes.get(node.output[0])
        return math.prod(output) * math.prod(kernel[1:]) if kernel and output else None
    if node.op_type in {"Gemm", "MatMul"}:
        left, output = shapes.get(node.input[0]), shapes.get(node.output[0])
        if not left or not output:
            return None
        transposed = any(attribute.name == "transA" and attribute.i for attribute in node.attribute)
        return math.prod(output) * left[-2 if transposed else -1]
    return 0
