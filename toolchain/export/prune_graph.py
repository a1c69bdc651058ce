"""Structured pruning of a float ONNX graph: a smaller architecture that can be timed without tracing a model again.

Latency does not depend on the weights, so a plan is tried on the dense model's graph in a fraction of a second, where
exporting the pruned model through torch takes several seconds. Layers are matched by the `nn.Module` that they were
traced from.
"""

from collections.abc import Mapping, Sequence

import numpy as np
import onnx
import onnx_ir as ir

from toolchain.core.errors import ToolchainError
from toolchain.export.onnx_graph import add_initializer, constant_value, module_name, readers_of, remove_dead_nodes
from toolchain.pruning import width_search
from toolchain.pruning.surgery import Surgery

KeptIndices = Mapping[int, Sequence[int]]  # dimension -> indices


def apply_surgery(base: ir.Model, surgery: Surgery) -> ir.Model:
    """Return a copy of a float graph without the plan's pruned channels and dropped blocks.

    Args:
        base: as `to_onnx.export_graph` returns it, with the names of the modules still inside.
        surgery: a plan for the model that the graph was exported from.

    Raises:
        ToolchainError: the shapes no longer fit together, for example where a channel count is written into a constant:
            such a model has to be exported again.
    """
    model = base.clone()
    graph = model.graph
    for name in surgery.dropped:
        _drop_block(graph, name)
    for node in list(graph):
        if node.op_type == "Reshape":
            _infer_row_length(graph, node)
        kept = surgery.keep.get(f"{module_name(node)}.weight")
        if kept is None:
            continue
        if node.op_type in {"Conv", "Gemm"}:
            _slice_constant(graph, node, 1, kept)
            _slice_constant(graph, node, 2, {0: kept[0]} if 0 in kept else {})
        elif node.op_type == "MatMul":  # its weight is torch's, transposed; the bias is added behind it
            _slice_constant(graph, node, 1, {1 - dimension: indices for dimension, indices in kept.items()})
            _slice_added_bias(graph, node, kept)
        elif node.op_type == "LayerNormalization":
            _slice_constant(graph, node, 1, kept)
            _slice_constant(graph, node, 2, kept)
        groups = surgery.attributes.get(module_name(node), {}).get("groups")
        if node.op_type == "Conv" and groups is not None:
            node.attributes["group"] = ir.AttrInt64("group", groups)
    remove_dead_nodes(graph)
    return _infer_shapes(model)


def _slice_constant(graph: ir.Graph, node: ir.Node, index: int, kept: KeptIndices) -> None:
    """Replace one constant input by its kept indices; other readers of the same constant keep the whole one."""
    value = node.inputs[index] if len(node.inputs) > index else None
    array = constant_value(value)
    if array is None or value is None or not kept:
        return
    for dimension, indices in kept.items():
        array = np.take(array, np.asarray(indices), axis=dimension)
    name = f"{node.outputs[0].name}_kept{index}"
    node.replace_input_with(index, add_initializer(graph, name, np.ascontiguousarray(array)))


def _infer_row_length(graph: ir.Graph, reshape: ir.Node) -> None:
    """Let a reshape to rows infer the length of a row, where the number of channels is written into its shape."""
    shape = constant_value(reshape.inputs[1])
    if shape is not None and len(shape) == 2 and -1 not in shape:
        rows = np.asarray([shape[0], -1], np.int64)
        reshape.replace_input_with(1, add_initializer(graph, f"{reshape.outputs[0].name}_rows", rows))


def _slice_added_bias(graph: ir.Graph, product: ir.Node, kept: KeptIndices) -> None:
    if 0 not in kept:
        return
    for addition in [reader for reader in readers_of(product.outputs[0]) if reader.op_type == "Add"]:
        for index in (0, 1):
            if addition.inputs[index] is not product.outputs[0]:
                _slice_constant(graph, addition, index, {0: kept[0]})


def find_droppable_blocks(base: ir.Model) -> tuple[str, ...]:
    """Return the modules with a residual addition that can be dropped, in running order."""
    names = dict.fromkeys(module_name(node) for node in base.graph if node.op_type == "Add")
    return tuple(name for name in names if name and _find_residual_block(base.graph, name) is not None)


def _find_residual_block(graph: ir.Graph, name: str) -> tuple[list[ir.Node], ir.Value, ir.Value] | None:
    """Return a residual block's nodes, the value that its addition adds to, and its only output; None for no block."""
    nodes = [node for node in graph if width_search.is_inside(module_name(node), name)]
    computed = {value for node in nodes for value in node.outputs}
    added = {value for node in nodes if node.op_type == "Add" for value in node.inputs if value not in computed}
    entries = [value for value in added if value is not None and constant_value(value) is None]
    exits = [
        value
        for value in computed
        if value in graph.outputs or any(reader not in nodes for reader in readers_of(value))
    ]
    return (nodes, entries[0], exits[0]) if len(entries) == len(exits) == 1 else None


def _drop_block(graph: ir.Graph, name: str) -> None:
    """Replace a residual block by its input."""
    block = _find_residual_block(graph, name)
    if block is None:
        raise ToolchainError(f"{name} is not a residual block, so it cannot be dropped")
    nodes, entry, output = block
    output.replace_all_uses_with(entry, replace_graph_outputs=True)
    for node in reversed(nodes):
        graph.remove(node, safe=True)


def _infer_shapes(model: ir.Model) -> ir.Model:
    """Return the model with the shapes that follow from its new weights; Q/DQ placement depends on them."""
    for node in model.graph:
        for value in node.outputs:
            if value not in model.graph.outputs:
                value.shape = None
    try:
        proto = onnx.shape_inference.infer_shapes(ir.serde.serialize_model(model), check_type=True, strict_mode=True)
        onnx.checker.check_model(proto)
    except Exception as reason:  # onnx's errors share no base class
        raise ToolchainError(f"the shapes of the pruned graph do not fit together: {reason}") from reason
    return ir.serde.deserialize_model(proto)
