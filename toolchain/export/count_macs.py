"""Multiply-accumulates of an ONNX graph, for models that come without a count."""

import math
from collections.abc import Mapping
from pathlib import Path

import onnx

Shape = tuple[int, ...]


def count(path: Path) -> int | None:
    """Of convolutions and matrix products, for one picture; None where shapes cannot be told."""
    try:
        model = onnx.shape_inference.infer_shapes(
            onnx.load(path, load_external_data=False), strict_mode=False, data_prop=True
        )
    except Exception:  # a graph that onnx does not understand may run all the same
        return None
    graph = model.graph
    shapes = {one.name: tuple(one.dims) for one in graph.initializer}
    for value in (*graph.input, *graph.value_info, *graph.output):
        dims = value.type.tensor_type.shape.dim
        shapes[value.name] = tuple(dim.dim_value or 1 for dim in dims)  # an open side is the number of pictures
    found = [_node(node, shapes) for node in graph.node]
    return None if any(one is None for one in found) else sum(one for one in found if one is not None)


def _node(node: onnx.NodeProto, shapes: Mapping[str, Shape]) -> int | None:
    """Products of one node; 0 for one that multiplies nothing by weights."""
    if node.op_type == "Conv":
        kernel, result = shapes.get(node.input[1]), shapes.get(node.output[0])
        return math.prod(result) * math.prod(kernel[1:]) if kernel and result else None
    if node.op_type in {"Gemm", "MatMul"}:
        left, result = shapes.get(node.input[0]), shapes.get(node.output[0])
        if not left or not result:
            return None
        turned = any(one.name == "transA" and one.i for one in node.attribute)
        return math.prod(result) * left[-2 if turned else -1]
    return 0
