"""Passes over an integer ONNX graph for one runtime: operations written in the form that its fusions know.

`qdq` cleans what every runtime is given; what stands here is asked for by the runtime that needs it. No result
changes by more than the rounding of a bias.
"""

import numpy as np
import onnx_ir as ir

from toolchain.export.passes.cleanup import (
    add_initializer,
    constant_value,
    nodes_of_type,
    producer_of_type,
    range_within,
    remove_dead_nodes,
    replace_node,
    same_scale,
)

# values stay what they are
DATA_MOVEMENT_OPS = {"Reshape", "Flatten", "Squeeze", "Unsqueeze", "Transpose", "Slice", "Split", "Concat"}


def matmul_to_gemm(graph: ir.Graph) -> None:
    """An integer product over the last of several dimensions, with its bias, as Gemm on rows.

    For runtimes whose integer product has neither a bias nor float results. What is reshaped are integers, so that
    Gemm stands between DQ and Q.
    """
    for node in nodes_of_type(graph, "MatMul"):
        source, kernel = producer_of_type(node, "DequantizeLinear"), producer_of_type(node, "DequantizeLinear", 1)
        weight = constant_value(kernel.inputs[0]) if kernel is not None else None
        shape = node.inputs[0].shape if node.inputs[0] is not None else None
        if source is None or weight is None or weight.ndim != 2 or shape is None or not shape.is_static():
            continue
        end = _biased(node)
        bias = [] if end is node else [value for value in end.inputs if constant_value(value) is not None]
        name, outputs = str(node.outputs[0].name), weight.shape[1]
        sizes = {"rows": [-1, weight.shape[0]], "back": [*shape.numpy()[:-1], outputs]}
        known = {key: add_initializer(graph, f"{name}_{key}", np.asarray(v, np.int64)) for key, v in sizes.items()}
        rows = ir.node("Reshape", [source.inputs[0], known["rows"]])
        real = ir.node("DequantizeLinear", [rows.outputs[0], *source.inputs[1:]])
        gemm = ir.node("Gemm", [real.outputs[0], node.inputs[1], *bias], name=node.name)
        graph.insert_before(end, [rows, real, gemm])
        behind = [use.node for use in end.outputs[0].uses()]
        for quantize in [one for one in behind if one.op_type == "QuantizeLinear"]:
            inner = ir.node("QuantizeLinear", [gemm.outputs[0], *quantize.inputs[1:]])
            replace_node(graph, quantize, [inner, ir.node("Reshape", [inner.outputs[0], known["back"]])])
        if any(one.op_type != "QuantizeLinear" for one in behind) or end.outputs[0] in graph.outputs:
            replace_node(graph, end, [ir.node("Reshape", [gemm.outputs[0], known["back"]])])
    remove_dead_nodes(graph)


def _biased(product: ir.Node) -> ir.Node:
    """The addition of a constant behind a product, else the product itself."""
    behind = [use.node for use in product.outputs[0].uses()]
    if len(behind) != 1 or behind[0].op_type != "Add" or product.outputs[0] in (product.graph or product).outputs:
        return product
    found = [array for value in behind[0].inputs if (array := constant_value(value)) is not None]
    return behind[0] if len(found) == 1 and found[0].ndim == 1 else product


def separate_zero_points(graph: ir.Graph) -> None:
    """Each per-channel DQ with a zero point of its own; torch lets all of one length share one.

    OpenVINO takes none of them for a constant weight where one zero point serves weights of different shapes.
    """
    for node in nodes_of_type(graph, "DequantizeLinear"):
        zero = constant_value(node.inputs[2]) if len(node.inputs) > 2 else None
        if zero is not None and zero.ndim == 1:
            node.replace_input_with(2, add_initializer(graph, f"{node.outputs[0].name}_own_zero", zero.copy()))


def hard_sigmoid_to_add(graph: ir.Graph) -> None:
    """A hard sigmoid between integers is an addition that saturates: its slope goes into the scale it is read with.

    For runtimes that have an integer addition but no integer hard sigmoid. The rounding behind it cuts at 0 and, with
    a highest value of at most 1, at the top too, so every result stays the same.
    """
    for node in nodes_of_type(graph, "HardSigmoid"):
        before, behind = producer_of_type(node, "DequantizeLinear"), [use.node for use in node.outputs[0].uses()]
        step = constant_value(before.inputs[1]) if before is not None else None
        if before is None or step is None or not behind or any(n.op_type != "QuantizeLinear" for n in behind):
            continue
        if not all(range_within(quantize, 0.0, 1.0) for quantize in behind):
            continue
        alpha, beta = _hard_sigmoid(node)
        zero = constant_value(before.inputs[2])
        assert zero is not None
        name = node.outputs[0].name
        scaled = add_initializer(graph, f"{name}_slope", np.asarray(step * np.float32(alpha), np.float32))
        offset = [
            add_initializer(graph, f"{name}_offset", np.ones((), zero.dtype)),
            add_initializer(graph, f"{name}_offset_step", np.asarray(beta, np.float32)),
            add_initializer(graph, f"{name}_offset_zero", np.zeros((), zero.dtype)),
        ]
        sloped = ir.node("DequantizeLinear", [before.inputs[0], scaled, before.inputs[2]])
        constant_ = ir.node("DequantizeLinear", offset)
        replace_node(graph, node, [sloped, constant_, ir.node("Add", [sloped.outputs[0], constant_.outputs[0]])])


def rewrite_hard_activations(graph: ir.Graph) -> None:
    """A float hard sigmoid, and its product with its own input, in the form that OpenVINO's fusions know.

    As separate operations they cost MobileNetV3 more than its convolutions. A product of the two is HardSwish; a hard
    sigmoid alone is a clipped sum. The values stay the same.
    """
    for node in nodes_of_type(graph, "HardSigmoid"):
        alpha, beta = _hard_sigmoid(node)
        if abs(alpha - 1 / 6) > 1e-6 or abs(beta - 0.5) > 1e-6:
            continue
        source, readers = node.inputs[0], [use.node for use in node.outputs[0].uses()]
        if len(readers) == 1 and readers[0].op_type == "Mul" and source in readers[0].inputs:
            replace_node(graph, readers[0], [ir.node("HardSwish", [source])])
            continue
        name = node.outputs[0].name
        numbers = {"shift": 3.0, "low": 0.0, "high": 6.0, "sixth": 1 / 6}
        known = {key: add_initializer(graph, f"{name}_{key}", np.asarray(v, np.float32)) for key, v in numbers.items()}
        shifted = ir.node("Add", [source, known["shift"]])
        clipped = ir.node("Clip", [shifted.outputs[0], known["low"], known["high"]])
        replace_node(graph, node, [shifted, clipped, ir.node("Mul", [clipped.outputs[0], known["sixth"]])])


def _hard_sigmoid(node: ir.Node) -> tuple[float, float]:
    """Slope and offset, with ONNX's own where they are not given."""
    alpha, beta = (node.attributes.get(name) for name in ("alpha", "beta"))
    return alpha.as_float() if alpha else 0.2, beta.as_float() if beta else 0.5


def drop_qdq_after_data_movement(graph: ir.Graph) -> None:
    """Q and DQ behind operations that move values alone, in the scale that these were rounded to before.

    For runtimes that carry integers through such operations by themselves: pairs in between hide patterns that they
    fuse, a channel shuffle above all, which is Reshape, Transpose, Reshape.
    """
    for quantize in nodes_of_type(graph, "QuantizeLinear"):
        moved = quantize.inputs[0]
        behind = [use.node for use in quantize.outputs[0].uses()]
        if moved is None or any(node.op_type != "DequantizeLinear" for node in behind) or moved in graph.inputs:
            continue
        producer = moved.producer()
        before = _rounded_by(moved) if producer is not None and producer.op_type in DATA_MOVEMENT_OPS else None
        if before is not None and same_scale(quantize, before):
            for dequantize in behind:
                if dequantize.outputs[0] not in graph.outputs:  # whose names are kept
                    dequantize.outputs[0].replace_all_uses_with(moved)


def _rounded_by(value: ir.Value | None) -> ir.Node | None:
    """The DQ whose scale a value is in multiples of; None where it has not been rounded, or to several scales."""
    producer = value.producer() if value is not None else None
    if producer is None or producer.op_type == "DequantizeLinear":
        return producer
    if producer.op_type not in DATA_MOVEMENT_OPS:
        return None
    sources = producer.inputs if producer.op_type == "Concat" else producer.inputs[:1]
    found = [_rounded_by(source) for source in sources]
    first = found[0]
    same = first is not None and all(other is not None and same_scale(first, other) for other in found)
    return first if same else None
