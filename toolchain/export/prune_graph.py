"""A Surgery on a float ONNX graph: a smaller architecture to be timed, without tracing a model again.

Weights do not decide latency, so a plan can be tried on the graph of the dense model in a fraction of a second, where
exporting the pruned model through torch takes several. Layers are found by the `nn.Module` that they were traced from.
"""

from collections.abc import Mapping, Sequence

import numpy as np
import onnx
import onnx_ir as ir

from toolchain.core.errors import ToolchainError
from toolchain.export import insert_qdq
from toolchain.export.passes import cleanup
from toolchain.pruning import width_search
from toolchain.pruning.surgery import Surgery

KeptIndices = Mapping[int, Sequence[int]]  # dimension -> indices


def apply_surgery(base: ir.Model, surgery: Surgery) -> ir.Model:
    """A copy of a float graph with the plan's channels and blocks gone.

    Args:
        base: as `onnx_export.translate` gives it, with the names of the modules still inside.
        surgery: a plan for the model that the graph was made from.

    Raises:
        ToolchainError: the graph does not fit together afterwards, as where a constant has a channel count in it: such
            a model has to be exported again.
    """
    model = base.clone()
    graph = model.graph
    for name in surgery.dropped:
        _drop(graph, name)
    for node in list(graph):
        if node.op_type == "Reshape":
            _free_channels(graph, node)
        kept = surgery.keep.get(f"{insert_qdq.module_name(node)}.weight")
        if kept is None:
            continue
        if node.op_type in {"Conv", "Gemm"}:
            _cut(graph, node, 1, kept)
            _cut(graph, node, 2, {0: kept[0]} if 0 in kept else {})
        elif node.op_type == "MatMul":  # its weight is torch's, transposed; a bias is added behind it
            _cut(graph, node, 1, {1 - dimension: indices for dimension, indices in kept.items()})
            _cut_bias(graph, node, kept)
        elif node.op_type == "LayerNormalization":
            _cut(graph, node, 1, kept)
            _cut(graph, node, 2, kept)
        groups = surgery.attributes.get(insert_qdq.module_name(node), {}).get("groups")
        if node.op_type == "Conv" and groups is not None:
            node.attributes["group"] = ir.AttrInt64("group", groups)
    cleanup.remove_dead_nodes(graph)
    return _inferred(model)


def _cut(graph: ir.Graph, node: ir.Node, index: int, kept: KeptIndices) -> None:
    """Takes what is kept of one constant input; a constant that other nodes read too is left to them."""
    value = node.inputs[index] if len(node.inputs) > index else None
    array = cleanup.constant_value(value)
    if array is None or value is None or not kept:
        return
    for dimension, indices in kept.items():
        array = np.take(array, np.asarray(indices), axis=dimension)
    node.replace_input_with(
        index, cleanup.add_initializer(graph, f"{node.outputs[0].name}_kept{index}", np.ascontiguousarray(array))
    )


def _free_channels(graph: ir.Graph, reshape: ir.Node) -> None:
    """A reshape to rows, which has the number of channels written into it, takes what there is."""
    shape = cleanup.constant_value(reshape.inputs[1])
    if shape is not None and len(shape) == 2 and -1 not in shape:
        rows = np.asarray([shape[0], -1], np.int64)
        reshape.replace_input_with(1, cleanup.add_initializer(graph, f"{reshape.outputs[0].name}_rows", rows))


def _cut_bias(graph: ir.Graph, product: ir.Node, kept: KeptIndices) -> None:
    for node in [use.node for use in product.outputs[0].uses() if use.node.op_type == "Add" and 0 in kept]:
        for index in (0, 1):
            if node.inputs[index] is not product.outputs[0]:
                _cut(graph, node, index, {0: kept[0]})


def find_droppable_blocks(base: ir.Model) -> tuple[str, ...]:
    """Modules that add something to what they read and can be left out, in running order."""
    names = dict.fromkeys(insert_qdq.module_name(node) for node in base.graph if node.op_type == "Add")
    return tuple(name for name in names if name and _block(base.graph, name) is not None)


def _block(graph: ir.Graph, name: str) -> tuple[list[ir.Node], ir.Value, ir.Value] | None:
    """A residual block's nodes, the value that its addition adds to, and the only one that is read behind it."""
    inside = [node for node in graph if width_search.is_inside(insert_qdq.module_name(node), name)]
    made = {value for node in inside for value in node.outputs}
    added = {value for node in inside if node.op_type == "Add" for value in node.inputs if value not in made}
    entries = [value for value in added if value is not None and cleanup.constant_value(value) is None]
    ends = [value for value in made if value in graph.outputs or any(use.node not in inside for use in value.uses())]
    return (inside, entries[0], ends[0]) if len(entries) == len(ends) == 1 else None


def _drop(graph: ir.Graph, name: str) -> None:
    """Replaces a residual block by its input."""
    block = _block(graph, name)
    if block is None:
        raise ToolchainError(f"{name} is no residual block: it cannot be left out")
    inside, entry, end = block
    end.replace_all_uses_with(entry, replace_graph_outputs=True)
    for node in reversed(inside):
        graph.remove(node, safe=True)


def _inferred(model: ir.Model) -> ir.Model:
    """The model with the shapes that follow from its new weights; they decide where a placement may round."""
    for node in model.graph:
        for value in node.outputs:
            if value not in model.graph.outputs:
                value.shape = None
    try:
        proto = onnx.shape_inference.infer_shapes(ir.serde.serialize_model(model), check_type=True, strict_mode=True)
        onnx.checker.check_model(proto)
    except Exception as reason:  # its errors share no base class
        raise ToolchainError(f"the narrowed graph does not fit together: {reason}") from reason
    return ir.serde.deserialize_model(proto)
