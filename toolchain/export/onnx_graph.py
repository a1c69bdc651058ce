"""ONNX-IR graphs: what the passes, Q/DQ insertion and graph pruning all need to read and edit them."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx_ir as ir

from toolchain.core import files

WEIGHTED_OPS = ("Conv", "Gemm", "MatMul")


def save_model(model: ir.Model, path: Path) -> None:
    """Write a model as one self-contained file, atomically."""
    proto = ir.serde.serialize_model(model)
    with files.open_atomic(path) as out:
        out.write(proto.SerializeToString(deterministic=True))


# --- reading ------------------------------------------------------------------------------------------------


def name_scopes(node: ir.Node) -> list[str]:
    """Return the names of the modules that torch traced a node from, outermost first, then the operation's own name."""
    return node.metadata_props.get("pkg.torch.onnx.name_scopes", "[]").strip("[]").replace("'", "").split(", ")


def module_name(node: ir.Node) -> str:
    """Return the name of the innermost `nn.Module` that a node was traced from; "" where torch does not say."""
    scopes = name_scopes(node)
    return scopes[-2] if len(scopes) > 1 else ""


def nodes_of_type(graph: ir.Graph, op_type: str) -> list[ir.Node]:
    """Return the nodes of one type, in order."""
    return [node for node in graph if node.op_type == op_type]


def readers_of(value: ir.Value) -> list[ir.Node]:
    """Return the nodes that read a value, one entry for each use."""
    return [use.node for use in value.uses()]


def producer_of_type(node: ir.Node, op_type: str, index: int = 0) -> ir.Node | None:
    """Return the node that computes one input, if it is of this type."""
    value = node.inputs[index] if len(node.inputs) > index else None
    producer = value.producer() if value is not None else None
    return producer if producer is not None and producer.op_type == op_type else None


def constant_value(value: ir.Value | None) -> np.ndarray | None:
    """Return a constant's array; None for a value that is only known when the graph runs."""
    return None if value is None or value.const_value is None else value.const_value.numpy()


def same_scale(first: ir.Node, second: ir.Node) -> bool:
    """Return whether two Q or DQ nodes have equal, known scales and zero points."""
    pairs = zip(_scale_and_zero_point(first), _scale_and_zero_point(second), strict=True)
    return all(a.size == b.size > 0 and a.dtype == b.dtype and np.array_equal(a, b) for a, b in pairs)


def range_within(quantize: ir.Node, low: float, high: float) -> bool:
    """Return whether every value that a per-tensor QuantizeLinear can represent lies between two bounds."""
    scale, zero_point = _scale_and_zero_point(quantize)
    if scale.size != 1 or zero_point.size != 1:
        return False
    limits = np.iinfo(zero_point.dtype)
    lowest, highest = ((limit - int(zero_point)) * float(scale) for limit in (limits.min, limits.max))
    return lowest >= low - 1e-6 and highest <= high * (1 + 1e-5)


def _scale_and_zero_point(node: ir.Node) -> Iterator[np.ndarray]:
    for value in node.inputs[1:3]:
        array = constant_value(value)
        yield np.asarray([]) if array is None else array


# --- editing ------------------------------------------------------------------------------------------------


def add_initializer(graph: ir.Graph, name: str, array: np.ndarray) -> ir.Value:
    """Add a constant to the graph and return its value."""
    tensor = ir.tensor(array, name=name)
    value = ir.Value(name=name, const_value=tensor, shape=ir.Shape(array.shape), type=ir.TensorType(tensor.dtype))
    graph.register_initializer(value)
    return value


def replace_node(graph: ir.Graph, node: ir.Node, replacements: list[ir.Node]) -> None:
    """Insert nodes before one and let all its readers read the output of the last of them."""
    graph.insert_before(node, replacements)
    old, new = node.outputs[0], replacements[-1].outputs[0]
    new.shape, new.type = old.shape, old.type
    old.replace_all_uses_with(new, replace_graph_outputs=True)


def remove_dead_nodes(graph: ir.Graph) -> None:
    """Remove the nodes and initializers that nothing reads."""
    outputs = set(graph.outputs)
    for node in reversed(list(graph)):
        if all(not value.uses() and value not in outputs for value in node.outputs):
            graph.remove(node, safe=True)
    for name in [name for name, value in graph.initializers.items() if not value.uses()]:
        del graph.initializers[name]
