"""Passes over a quantized ONNX graph for one runtime: operations rewritten into patterns that the runtime fuses.

`cleanup` prepares the graph for every runtime; each pass here is called by the runtime that needs it. None changes a
result by more than rounding a bias.
"""

import numpy as np
import onnx_ir as ir

from toolchain.export.onnx_graph import (
    add_initializer,
    constant_value,
    nodes_of_type,
    producer_of_type,
    range_within,
    readers_of,
    remove_dead_nodes,
    replace_node,
    same_scale,
)

# operations that move values without changing them
DATA_MOVEMENT_OPS = {"Reshape", "Flatten", "Squeeze", "Unsqueeze", "Transpose", "Slice", "Split", "Concat"}


def matmul_to_gemm(graph: ir.Graph) -> None:
    """Rewrite an int8 product over the last of several dimensions, with its bias, as a Gemm on rows.

    For runtimes whose int8 product has neither a bias nor float results. The integers are reshaped, so that the Gemm
    stands directly between DQ and Q.
    """
    for node in nodes_of_type(graph, "MatMul"):
        source, kernel = producer_of_type(node, "DequantizeLinear"), producer_of_type(node, "DequantizeLinear", 1)
        weight = constant_value(kernel.inputs[0]) if kernel is not None else None
        shape = node.inputs[0].shape if node.inputs[0] is not None else None
        if source is None or weight is None or weight.ndim != 2 or shape is None or not shape.is_static():
            continue
        last = _bias_addition(node) or node
        bias = [] if last is node else [value for value in last.inputs if constant_value(value) is not None]
        name, outputs = str(node.outputs[0].name), weight.shape[1]
        row_shape, full_shape = (
            add_initializer(graph, f"{name}_{suffix}", np.asarray(sizes, np.int64))
            for suffix, sizes in (("rows", [-1, weight.shape[0]]), ("back", [*shape.numpy()[:-1], outputs]))
        )
        rows = ir.node("Reshape", [source.inputs[0], row_shape])
        dequantize = ir.node("DequantizeLinear", [rows.outputs[0], *source.inputs[1:]])
        gemm = ir.node("Gemm", [dequantize.outputs[0], node.inputs[1], *bias], name=node.name)
        graph.insert_before(last, [rows, dequantize, gemm])
        readers = readers_of(last.outputs[0])
        for quantize in [reader for reader in readers if reader.op_type == "QuantizeLinear"]:
            quantized_rows = ir.node("QuantizeLinear", [gemm.outputs[0], *quantize.inputs[1:]])
            reshape = ir.node("Reshape", [quantized_rows.outputs[0], full_shape])
            replace_node(graph, quantize, [quantized_rows, reshape])
        if any(reader.op_type != "QuantizeLinear" for reader in readers) or last.outputs[0] in graph.outputs:
            replace_node(graph, last, [ir.node("Reshape", [gemm.outputs[0], full_shape])])
    remove_dead_nodes(graph)


def _bias_addition(product: ir.Node) -> ir.Node | None:
    """Return the addition of a constant vector behind a product; None where there is none."""
    readers = readers_of(product.outputs[0])
    if len(readers) != 1 or readers[0].op_type != "Add" or product.outputs[0] in (product.graph or product).outputs:
        return None
    constants = [array for value in readers[0].inputs if (array := constant_value(value)) is not None]
    return readers[0] if len(constants) == 1 and constants[0].ndim == 1 else None


def separate_zero_points(graph: ir.Graph) -> None:
    """Give each per-channel DQ its own zero point; torch shares one among all weights with as many channels.

    OpenVINO recognizes no constant weight where one zero point serves weights of different shapes.
    """
    for node in nodes_of_type(graph, "DequantizeLinear"):
        zero = constant_value(node.inputs[2]) if len(node.inputs) > 2 else None
        if zero is not None and zero.ndim == 1:
            node.replace_input_with(2, add_initializer(graph, f"{node.outputs[0].name}_own_zero", zero.copy()))


def hard_sigmoid_to_add(graph: ir.Graph) -> None:
    """Replace a hard sigmoid between integers by an addition that saturates; its slope goes into the input's scale.

    For runtimes that have an int8 addition but no int8 hard sigmoid. The Q behind it clips at 0 and, with a highest
    value of at most 1, at the top too, so every result stays the same.
    """
    for node in nodes_of_type(graph, "HardSigmoid"):
        source, readers = producer_of_type(node, "DequantizeLinear"), readers_of(node.outputs[0])
        step = constant_value(source.inputs[1]) if source is not None else None
        if source is None or step is None or not readers:
            continue
        if not all(reader.op_type == "QuantizeLinear" and range_within(reader, 0.0, 1.0) for reader in readers):
            continue
        alpha, beta = _slope_and_offset(node)
        zero_point = constant_value(source.inputs[2])
        assert zero_point is not None
        name = node.outputs[0].name
        slope = add_initializer(graph, f"{name}_slope", np.asarray(step * np.float32(alpha), np.float32))
        offset_inputs = [
            add_initializer(graph, f"{name}_offset", np.ones((), zero_point.dtype)),
            add_initializer(graph, f"{name}_offset_step", np.asarray(beta, np.float32)),
            add_initializer(graph, f"{name}_offset_zero", np.zeros((), zero_point.dtype)),
        ]
        scaled = ir.node("DequantizeLinear", [source.inputs[0], slope, source.inputs[2]])
        offset = ir.node("DequantizeLinear", offset_inputs)
        replace_node(graph, node, [scaled, offset, ir.node("Add", [scaled.outputs[0], offset.outputs[0]])])


def rewrite_hard_activations(graph: ir.Graph) -> None:
    """Rewrite a float hard sigmoid, and its product with its own input, into patterns that OpenVINO fuses.

    As separate operations they cost MobileNetV3 more than its convolutions. The product becomes HardSwish, a hard
    sigmoid alone a clipped sum. The values stay the same.
    """
    for node in nodes_of_type(graph, "HardSigmoid"):
        alpha, beta = _slope_and_offset(node)
        if abs(alpha - 1 / 6) > 1e-6 or abs(beta - 0.5) > 1e-6:
            continue
        source, readers = node.inputs[0], readers_of(node.outputs[0])
        if len(readers) == 1 and readers[0].op_type == "Mul" and source in readers[0].inputs:
            replace_node(graph, readers[0], [ir.node("HardSwish", [source])])
            continue
        name = node.outputs[0].name
        shift, low, high, sixth = (
            add_initializer(graph, f"{name}_{suffix}", np.asarray(number, np.float32))
            for suffix, number in (("shift", 3.0), ("low", 0.0), ("high", 6.0), ("sixth", 1 / 6))
        )
        shifted = ir.node("Add", [source, shift])
        clipped = ir.node("Clip", [shifted.outputs[0], low, high])
        replace_node(graph, node, [shifted, clipped, ir.node("Mul", [clipped.outputs[0], sixth])])


def _slope_and_offset(hard_sigmoid: ir.Node) -> tuple[float, float]:
    """Return alpha and beta, with ONNX's defaults where they are not given."""
    alpha, beta = (hard_sigmoid.attributes.get(name) for name in ("alpha", "beta"))
    return alpha.as_float() if alpha else 0.2, beta.as_float() if beta else 0.5


def drop_qdq_after_data_movement(graph: ir.Graph) -> None:
    """Remove Q/DQ pairs behind operations that only move values, where the values are already rounded to that scale.

    For runtimes that propagate integers through such operations by themselves: pairs in between hide patterns that they
    fuse, a channel shuffle above all, which is Reshape, Transpose, Reshape.
    """
    for quantize in nodes_of_type(graph, "QuantizeLinear"):
        value, readers = quantize.inputs[0], readers_of(quantize.outputs[0])
        if value is None or any(reader.op_type != "DequantizeLinear" for reader in readers) or value in graph.inputs:
            continue
        producer = value.producer()
        moved = producer is not None and producer.op_type in DATA_MOVEMENT_OPS
        earlier = _find_dequantize(value) if moved else None
        if earlier is not None and same_scale(quantize, earlier):
            for dequantize in readers:
                if dequantize.outputs[0] not in graph.outputs:  # outputs keep their names
                    dequantize.outputs[0].replace_all_uses_with(value)


def _find_dequantize(value: ir.Value | None) -> ir.Node | None:
    """Return the DQ whose scale a moved value is rounded to; None where it is float or mixes several scales."""
    producer = value.producer() if value is not None else None
    if producer is None or producer.op_type == "DequantizeLinear":
        return producer
    if producer.op_type not in DATA_MOVEMENT_OPS:
        return None
    sources = producer.inputs if producer.op_type == "Concat" else producer.inputs[:1]
    first, *others = [_find_dequantize(source) for source in sources]
    same = first is not None and all(other is not None and same_scale(first, other) for other in others)
    return first if same else None
