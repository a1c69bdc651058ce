"""Clean-up of exported ONNX graphs, so that both runtimes fuse all of it and nothing of the build machine stays inside.

Each pass is a function over an onnx-ir graph that says what it changed; none changes a result by more than the
rounding of a bias to its int32 step.
"""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx_ir as ir

from toolchain.core import files

WEIGHTED_OPS = {"Conv", "Gemm", "MatMul"}
MAX_BIAS_STEPS = 2**31 - 1
MAX_IR_VERSION = 10  # what the oldest runtime release that we test reads


def clean(model: ir.Model) -> ir.Model:
    """All passes, in an order in which later ones see what earlier ones made possible; changes `model` and returns it."""
    graph = model.graph
    name_layers(graph)
    mean_to_global_pool(graph)
    drop_repeated_quantization(graph)
    fold_padding(graph)
    drop_absorbed_rectifiers(graph)
    fold_transposed_weights(graph)
    quantize_biases(graph)
    remove_dead_nodes(graph)
    strip_metadata(model)
    return model


def save(model: ir.Model, path: Path) -> None:
    """Writes one self-contained file, atomically."""
    proto = ir.serde.serialize_model(model)
    with files.open_atomic(path) as out:
        out.write(proto.SerializeToString(deterministic=True))


def name_layers(graph: ir.Graph) -> None:
    """Names every convolution and linear node after its `nn.Module`, so that reports can say which layer is meant."""
    taken: set[str] = set()
    for node in graph:
        if node.op_type not in WEIGHTED_OPS:
            continue
        weight = node.inputs[1].name if node.inputs[1] is not None else None
        scopes = node.metadata_props.get("pkg.torch.onnx.name_scopes", "[]").strip("[]").replace("'", "").split(", ")
        name = weight.removesuffix(".weight") if weight and weight.endswith(".weight") else (scopes[-2:] or [""])[0]
        if name and name not in taken:
            taken.add(name)
            node.name = name


def mean_to_global_pool(graph: ir.Graph) -> None:
    """A mean over height and width is a global average pool, which the runtimes have in integers."""
    for node in nodes_of_type(graph, "ReduceMean"):
        axes = constant_value(node.inputs[1]) if len(node.inputs) > 1 else None
        shape = node.inputs[0].shape if node.inputs[0] is not None else None
        if axes is None or shape is None or len(shape) != 4 or sorted(int(a) % 4 for a in axes.ravel()) != [2, 3]:
            continue
        keeps = "keepdims" not in node.attributes or node.attributes["keepdims"].as_int() == 1
        pool = ir.node("GlobalAveragePool", [node.inputs[0]], name=node.name)
        added = [pool] if keeps else [pool, ir.node("Flatten", [pool.outputs[0]], attributes={"axis": 1})]
        replace_node(graph, node, added)


def fold_padding(graph: ir.Graph) -> None:
    """Zeros put around a convolution's input become the convolution's own padding, also through Q/DQ of one scale.

    Zero is exact in integers, so nothing changes; the runtimes' integer convolutions fuse with no Pad in between.
    """
    for node in nodes_of_type(graph, "Pad"):
        source, pads = node.inputs[0], constant_value(node.inputs[1])
        mode = node.attributes["mode"].as_string() if "mode" in node.attributes else "constant"
        filler = constant_value(node.inputs[2]) if len(node.inputs) > 2 else None
        if (
            source is None
            or pads is None
            or pads.size != 8
            or mode != "constant"
            or (filler is not None and filler.any())
        ):
            continue
        inner, readers = source, [use.node for use in node.outputs[0].uses()]
        before = producer_of_type(node, "DequantizeLinear")
        if (
            before is not None
            and readers
            and all(r.op_type == "QuantizeLinear" and same_scale(r, before) for r in readers)
        ):
            behind = [use.node for r in readers for use in r.outputs[0].uses()]
            if any(d.op_type != "DequantizeLinear" for d in behind):
                continue
            readers = [use.node for d in behind for use in d.outputs[0].uses()]
            inner = before.outputs[0]
        else:
            behind = [node]
        top, left, bottom, right = (int(pads[i]) for i in (2, 3, 6, 7))
        if pads[[0, 1, 4, 5]].any() or not readers or not all(_takes_padding(r, behind) for r in readers):
            continue
        for reader in readers:
            own = reader.attributes["pads"].as_ints() if "pads" in reader.attributes else (0, 0, 0, 0)
            both = [a + b for a, b in zip(own, (top, left, bottom, right), strict=True)]
            reader.attributes["pads"] = ir.AttrInt64s("pads", both)
            reader.replace_input_with(0, inner)


def _takes_padding(reader: ir.Node, behind: list[ir.Node]) -> bool:
    """Whether a node is a convolution whose picture (not its weight) comes from one of `behind`."""
    picture = reader.inputs[0].producer() if reader.inputs and reader.inputs[0] is not None else None
    explicit = "auto_pad" not in reader.attributes or reader.attributes["auto_pad"].as_string() == "NOTSET"
    return reader.op_type == "Conv" and picture in behind and explicit


def drop_repeated_quantization(graph: ir.Graph) -> None:
    """Q behind DQ with the same scale rounds to what is there already."""
    for node in nodes_of_type(graph, "QuantizeLinear"):
        before = producer_of_type(node, "DequantizeLinear")
        if before is None or before.inputs[0] is None or not same_scale(node, before):
            continue
        node.outputs[0].replace_all_uses_with(before.inputs[0], replace_graph_outputs=True)


def drop_absorbed_rectifiers(graph: ir.Graph) -> None:
    """Relu and Clip do nothing in front of a Q whose integer range ends where they cut."""
    for node in [*nodes_of_type(graph, "Relu"), *nodes_of_type(graph, "Clip")]:
        uses = [use.node for use in node.outputs[0].uses()]
        if not uses or any(use.op_type != "QuantizeLinear" for use in uses):
            continue
        bounds = (0.0, np.inf) if node.op_type == "Relu" else _clip_bounds(node)
        if bounds and node.inputs[0] is not None and all(range_within(use, *bounds) for use in uses):
            node.outputs[0].replace_all_uses_with(node.inputs[0])


def quantize_biases(graph: ir.Graph) -> None:
    """Float biases of integer layers become int32 in steps of input scale x weight scale, as the kernels add them.

    ONNX Runtime 1.22 fuses no convolution without this, later releases some; the minimal-build format needs it.
    """
    for node in [*nodes_of_type(graph, "Conv"), *nodes_of_type(graph, "Gemm")]:
        source, kernel = producer_of_type(node, "DequantizeLinear"), producer_of_type(node, "DequantizeLinear", 1)
        bias = constant_value(node.inputs[2]) if len(node.inputs) > 2 else None
        if source is None or kernel is None or bias is None or bias.dtype != np.float32:
            continue
        scales = constant_value(source.inputs[1]), constant_value(kernel.inputs[1])
        if scales[0] is None or scales[1] is None:
            continue
        step = (scales[0] * scales[1]).astype(np.float32).reshape(-1)
        steps = np.round(bias.astype(np.float64) / step)
        if step.size != bias.size or np.abs(steps).max() > MAX_BIAS_STEPS:
            continue
        name = f"{node.name}.bias"
        inputs = [
            add_initializer(graph, f"{name}_int32", steps.astype(np.int32)),
            add_initializer(graph, f"{name}_scale", step),
            add_initializer(graph, f"{name}_zero", np.zeros(step.shape, np.int32)),
        ]
        real = ir.node("DequantizeLinear", inputs, attributes={"axis": 0}, name=f"{name}_dequantize")
        graph.insert_before(node, real)
        node.replace_input_with(2, real.outputs[0])


def fold_transposed_weights(graph: ir.Graph) -> None:
    """An integer weight is stored the way round in which its product reads it; torch writes a Transpose behind its DQ.

    With that in between neither runtime takes the product for an integer one.
    """
    for node in nodes_of_type(graph, "Transpose"):
        before = producer_of_type(node, "DequantizeLinear")
        weight = constant_value(before.inputs[0]) if before is not None else None
        if before is None or weight is None or weight.ndim != 2 or list(node.attributes["perm"].as_ints()) != [1, 0]:
            continue
        axis = before.attributes["axis"].as_int() if "axis" in before.attributes else 1
        turned = add_initializer(graph, f"{node.outputs[0].name}_int8", np.ascontiguousarray(weight.T))
        real = ir.node("DequantizeLinear", [turned, *before.inputs[1:]], attributes={"axis": 1 - axis})
        replace_node(graph, node, [real])


def remove_dead_nodes(graph: ir.Graph) -> None:
    """Nodes and initialisers that nothing reads any more."""
    outputs = set(graph.outputs)
    for node in reversed(list(graph)):
        if all(not value.uses() and value not in outputs for value in node.outputs):
            graph.remove(node, safe=True)
    for name in [name for name, value in graph.initializers.items() if not value.uses()]:
        del graph.initializers[name]


def strip_metadata(model: ir.Model) -> None:
    """Drops every comment: torch writes stack traces with absolute paths into them, a third of the file."""
    model.metadata_props.clear()
    model.doc_string = None
    graph = model.graph
    graph.metadata_props.clear()
    graph.doc_string = None
    values = [*graph.inputs, *graph.outputs, *graph.initializers.values()]
    for node in graph:
        node.metadata_props.clear()
        node.doc_string = None
        values += node.outputs
    for value in values:
        value.metadata_props.clear()
        value.doc_string = None
    model.producer_name, model.producer_version = "toolchain", ""
    model.ir_version = min(model.ir_version, MAX_IR_VERSION)


def nodes_of_type(graph: ir.Graph, op_type: str) -> list[ir.Node]:
    """Nodes of one type, in order."""
    return [node for node in graph if node.op_type == op_type]


def producer_of_type(node: ir.Node, op_type: str, index: int = 0) -> ir.Node | None:
    """The node behind one input, if it is of this type."""
    value = node.inputs[index] if len(node.inputs) > index else None
    producer = value.producer() if value is not None else None
    return producer if producer is not None and producer.op_type == op_type else None


def constant_value(value: ir.Value | None) -> np.ndarray | None:
    """What a value holds, where that is known without running the graph."""
    return None if value is None or value.const_value is None else value.const_value.numpy()


def _scale_and_zero(node: ir.Node) -> Iterator[np.ndarray]:
    for value in node.inputs[1:3]:
        found = constant_value(value)
        yield np.asarray([]) if found is None else found


def same_scale(first: ir.Node, second: ir.Node) -> bool:
    """Whether two Q or DQ nodes have equal, known scales and zero points."""
    pairs = zip(_scale_and_zero(first), _scale_and_zero(second), strict=True)
    return all(a.size == b.size > 0 and a.dtype == b.dtype and np.array_equal(a, b) for a, b in pairs)


def _clip_bounds(node: ir.Node) -> tuple[float, float] | None:
    bounds = [constant_value(value) for value in node.inputs[1:3]]
    if len(bounds) != 2 or bounds[0] is None or bounds[1] is None:
        return None
    return float(bounds[0]), float(bounds[1])


def range_within(quantize: ir.Node, low: float, high: float) -> bool:
    """Whether all that a QuantizeLinear of one scale can hold lies between two values."""
    scale, zero = _scale_and_zero(quantize)
    if scale.size != 1 or zero.size != 1:
        return False
    limits = np.iinfo(zero.dtype)
    reach = [(limit - int(zero)) * float(scale) for limit in (limits.min, limits.max)]
    return reach[0] >= low - 1e-6 and reach[1] <= high * (1 + 1e-5)


def add_initializer(graph: ir.Graph, name: str, array: np.ndarray) -> ir.Value:
    """A new constant of the graph."""
    tensor = ir.tensor(array, name=name)
    value = ir.Value(name=name, const_value=tensor, shape=ir.Shape(array.shape), type=ir.TensorType(tensor.dtype))
    graph.register_initializer(value)
    return value


def replace_node(graph: ir.Graph, node: ir.Node, added: list[ir.Node]) -> None:
    """Puts nodes in the place of one; the last one's result is read in place of its own."""
    graph.insert_before(node, added)
    added[-1].outputs[0].shape, added[-1].outputs[0].type = node.outputs[0].shape, node.outputs[0].type
    node.outputs[0].replace_all_uses_with(added[-1].outputs[0], replace_graph_outputs=True)
