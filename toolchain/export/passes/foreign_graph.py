"""Passes over a float graph that another exporter wrote, until it looks as ours does: float32, batch norm folded, gates and
matrix products in the form that `insert_qdq` and the runtimes' int8 kernels know, and a module's name at every node.

Each pass changes an ONNX-IR graph in place. None changes a result by more than float rounding.
"""

import re

import numpy as np
import onnx_ir as ir
from onnx_ir.passes import common
from onnxscript import optimizer

from toolchain.export.onnx_graph import (
    WEIGHTED_OPS,
    add_initializer,
    constant_value,
    module_name,
    nodes_of_type,
    remove_dead_nodes,
    replace_node,
)

OTHER_FLOATS = {ir.DataType.FLOAT16, ir.DataType.BFLOAT16, ir.DataType.DOUBLE}
MAX_FOLDED_SIZE = 2**28  # elements of a constant that is computed here once, not at every inference
HARD_SWISH_SLOPE, HARD_SWISH_OFFSET = 1 / 6, 0.5
SCOPES = "pkg.torch.onnx.name_scopes"  # where `onnx_graph.module_name` reads
WEIGHT_SUFFIXES = (".weight", "/weight", ".kernel", "/kernel", "/Conv2D/ReadVariableOp", "/MatMul/ReadVariableOp")


def normalize(model: ir.Model) -> ir.Model:
    """Apply all passes to a float32 model with static shapes and return it."""
    name_modules(model.graph)
    names = {id(node): module_name(node) for node in model.graph}
    optimizer.optimize_ir(model, input_size_limit=MAX_FOLDED_SIZE, output_size_limit=MAX_FOLDED_SIZE)
    common.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)(model)
    common.IdentityEliminationPass()(model)
    graph = model.graph
    drop_inactive_dropout(graph)
    hard_swish_to_gate(graph)
    transpose_gemm_weights(graph)
    remove_dead_nodes(graph)
    infer_shapes(model)
    name_modules(model.graph, known=names)
    return model


def infer_shapes(model: ir.Model) -> None:
    """Infer the shapes of all values anew, from the input's."""
    for node in model.graph:
        for value in node.outputs:
            value.shape = None
    common.ShapeInferencePass(check_type=False, strict_mode=False, data_prop=True)(model)


def widen_floats(model: ir.Model) -> bool:
    """Turn 16-bit and 64-bit floats into float32, in constants, casts and types; return whether there were any."""
    graph, changed = model.graph, False
    for value in graph.initializers.values():
        if value.const_value is not None and value.const_value.dtype in OTHER_FLOATS:
            value.const_value = ir.tensor(value.const_value.numpy().astype(np.float32), name=value.name)
            changed = True
    for node in graph:
        for name, attribute in node.attributes.items():
            if attribute.type is ir.AttributeType.TENSOR and attribute.as_tensor().dtype in OTHER_FLOATS:
                widened = ir.tensor(attribute.as_tensor().numpy().astype(np.float32))
                node.attributes[name] = ir.AttrTensor(name, widened)
                changed = True
        if node.op_type == "Cast" and ir.DataType(node.attributes["to"].as_int()) in OTHER_FLOATS:
            node.attributes["to"] = ir.AttrInt64("to", int(ir.DataType.FLOAT))
    for value in (*graph.inputs, *graph.outputs, *graph.initializers.values(), *(v for n in graph for v in n.outputs)):
        if value.dtype in OTHER_FLOATS:
            value.type = ir.TensorType(ir.DataType.FLOAT)
            changed = True
    return changed


def drop_inactive_dropout(graph: ir.Graph) -> None:
    """Remove dropout, which does nothing in inference mode."""
    for node in nodes_of_type(graph, "Dropout"):
        source = node.inputs[0]
        if source is not None and not any(value.uses() for value in node.outputs[1:]):
            node.outputs[0].replace_all_uses_with(source, replace_graph_outputs=True)


def hard_swish_to_gate(graph: ir.Graph) -> None:
    """Write a hard-swish as its input times a hard sigmoid, which the runtimes have in int8."""
    for node in nodes_of_type(graph, "HardSwish"):
        slope = {"alpha": HARD_SWISH_SLOPE, "beta": HARD_SWISH_OFFSET}
        gate = ir.node("HardSigmoid", [node.inputs[0]], attributes=slope, name=f"{node.name}_gate")
        product = ir.node("Mul", [node.inputs[0], gate.outputs[0]], name=node.name)
        for part in (gate, product):
            part.metadata_props.update(node.metadata_props)
        gate.outputs[0].name = f"{node.outputs[0].name}_gate"
        product.outputs[0].name = f"{node.outputs[0].name}_gated"
        replace_node(graph, node, [gate, product])


def transpose_gemm_weights(graph: ir.Graph) -> None:
    """Store the weights of a Gemm as torch does, [outputs, inputs], without factors: the form that is quantized by channel."""
    for node in nodes_of_type(graph, "Gemm"):
        weight, bias = constant_value(node.inputs[1]), constant_value(node.inputs[2]) if len(node.inputs) > 2 else None
        flags = {name: node.attributes[name].as_int() for name in ("transA", "transB") if name in node.attributes}
        factors = {name: node.attributes[name].as_float() for name in ("alpha", "beta") if name in node.attributes}
        if weight is None or flags.get("transA") or (len(node.inputs) > 2 and bias is None):
            continue
        rows = weight if flags.get("transB") else weight.T
        rows = rows * np.float32(factors.get("alpha", 1))
        node.replace_input_with(1, add_initializer(graph, f"{node.outputs[0].name}.weight", np.ascontiguousarray(rows)))
        if bias is not None:
            values = np.broadcast_to(bias * np.float32(factors.get("beta", 1)), (1, len(rows))).reshape(-1)
            node.replace_input_with(2, add_initializer(graph, f"{node.outputs[0].name}.bias", values.copy()))
        node.attributes.clear()
        node.attributes["transB"] = ir.AttrInt64("transB", 1)


# --- names ----------------------------------------------------------------------------------------------------


def name_modules(graph: ir.Graph, known: dict[int, str] | None = None) -> None:
    """Give every node the name of the module that it belongs to, where `onnx_graph.module_name` looks for it.

    A layer is named after its weight, as in torch's state dict; other nodes after what the exporter called them.

    Args:
        graph: changed.
        known: names of earlier nodes by `id`, for nodes that a pass left as they were.
    """
    used = dict[str, int]()
    for node in graph:
        name = (
            _weight_module(node) or (known or {}).get(id(node)) or module_name(node) or _module_of_path(node.name or "")
        )
        name = re.sub(r"[\s',\[\]]+", "_", name or str(node.outputs[0].name)).strip("_")
        if node.op_type in WEIGHTED_OPS:  # two layers never share a name: the placement tells them apart by it
            used[name] = used.get(name, 0) + 1
            name += f"_{used[name]}" if used[name] > 1 else ""
        node.metadata_props[SCOPES] = f"['{name}', '{node.op_type}']"


def _weight_module(node: ir.Node) -> str:
    """Return the module that a layer's weight is named after; "" where the exporter gave it a number."""
    if node.op_type not in WEIGHTED_OPS or len(node.inputs) < 2 or node.inputs[1] is None:
        return ""
    name = str(node.inputs[1].name)
    suffix = next((suffix for suffix in WEIGHT_SUFFIXES if name.endswith(suffix)), "")
    return _join_path(name.removesuffix(suffix)) if suffix and not _is_own_output(node, name) else ""


def _is_own_output(node: ir.Node, name: str) -> bool:
    """Return whether a weight was named here, after the node's output."""
    return name == f"{node.outputs[0].name}.weight"


def _module_of_path(name: str) -> str:
    """Return the module of a node's path: `layer1.0.conv1` of torch's `/layer1/layer1.0/conv1/Conv`."""
    return _join_path(name.rpartition("/")[0]) if "/" in name else name


def _join_path(path: str) -> str:
    """Join the parts of a path with dots; torch's older exporter repeats a parent's name in its child's."""
    parts: list[str] = []
    for part in filter(None, path.split("/")):
        if parts and part.startswith(f"{parts[-1]}."):
            parts.pop()
        parts.append(part)
    return ".".join(parts)
