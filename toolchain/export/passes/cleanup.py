"""Clean-up of exported ONNX graphs: both runtimes can fuse all of the graph, and nothing of the build machine stays in it.

Each pass changes an ONNX-IR graph in place. None changes a result by more than rounding a bias to its int32 step.
"""

import numpy as np
import onnx_ir as ir

from toolchain.export.onnx_graph import (
    WEIGHTED_OPS,
    add_initializer,
    constant_value,
    name_scopes,
    nodes_of_type,
    producer_of_type,
    range_within,
    readers_of,
    remove_dead_nodes,
    replace_node,
    same_scale,
)

MAX_BIAS_STEPS = 2**31 - 1
MAX_IR_VERSION = 10  # the oldest tested runtime release reads no later one


def clean(model: ir.Model) -> ir.Model:
    """Apply all passes to `model` and return it; later passes match what earlier ones made possible."""
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


def name_layers(graph: ir.Graph) -> None:
    """Name every convolution and linear node after its `nn.Module`, so that reports can name the layer."""
    used_names: set[str] = set()
    for node in graph:
        if node.op_type not in WEIGHTED_OPS:
            continue
        weight = (node.inputs[1].name if node.inputs[1] is not None else None) or ""
        name = weight.removesuffix(".weight") if weight.endswith(".weight") else name_scopes(node)[-2:][0]
        if name and name not in used_names:
            used_names.add(name)
            node.name = name


def mean_to_global_pool(graph: ir.Graph) -> None:
    """Replace a mean over height and width by a global average pool, which the runtimes have in int8."""
    for node in nodes_of_type(graph, "ReduceMean"):
        axes = constant_value(node.inputs[1]) if len(node.inputs) > 1 else None
        shape = node.inputs[0].shape if node.inputs[0] is not None else None
        if axes is None or shape is None or len(shape) != 4 or sorted(int(a) % 4 for a in axes.ravel()) != [2, 3]:
            continue
        keeps_dimensions = "keepdims" not in node.attributes or node.attributes["keepdims"].as_int() == 1
        pool = ir.node("GlobalAveragePool", [node.inputs[0]], name=node.name)
        flatten = [] if keeps_dimensions else [ir.node("Flatten", [pool.outputs[0]], attributes={"axis": 1})]
        replace_node(graph, node, [pool, *flatten])


def fold_padding(graph: ir.Graph) -> None:
    """Fold zero padding in front of convolutions into their own padding, also through a Q/DQ pair of the same scale.

    Zero is exact in integers, so no value changes; the runtimes' int8 convolutions do not fuse with a Pad in between.
    """
    for node in nodes_of_type(graph, "Pad"):
        source, pads = node.inputs[0], constant_value(node.inputs[1])
        mode = node.attributes["mode"].as_string() if "mode" in node.attributes else "constant"
        fill = constant_value(node.inputs[2]) if len(node.inputs) > 2 else None
        if source is None or pads is None or pads.size != 8 or mode != "constant" or (fill is not None and fill.any()):
            continue
        readers, producers = readers_of(node.outputs[0]), [node]  # convolutions, and the nodes whose output they read
        dequantize = producer_of_type(node, "DequantizeLinear")
        if (
            dequantize is not None
            and readers
            and all(reader.op_type == "QuantizeLinear" and same_scale(reader, dequantize) for reader in readers)
        ):
            producers = [behind for quantize in readers for behind in readers_of(quantize.outputs[0])]
            if any(producer.op_type != "DequantizeLinear" for producer in producers):
                continue
            readers = [reader for producer in producers for reader in readers_of(producer.outputs[0])]
            source = dequantize.outputs[0]
        top, left, bottom, right = (int(pads[i]) for i in (2, 3, 6, 7))
        only_spatial = not pads[[0, 1, 4, 5]].any()
        if not only_spatial or not readers or not all(_can_pad(reader, producers) for reader in readers):
            continue
        for convolution in readers:
            old = convolution.attributes["pads"].as_ints() if "pads" in convolution.attributes else (0, 0, 0, 0)
            total = [a + b for a, b in zip(old, (top, left, bottom, right), strict=True)]
            convolution.attributes["pads"] = ir.AttrInt64s("pads", total)
            convolution.replace_input_with(0, source)


def _can_pad(reader: ir.Node, producers: list[ir.Node]) -> bool:
    """Return whether a node is a convolution whose image, not its weight, comes from one of `producers`."""
    image_producer = reader.inputs[0].producer() if reader.inputs and reader.inputs[0] is not None else None
    explicit = "auto_pad" not in reader.attributes or reader.attributes["auto_pad"].as_string() == "NOTSET"
    return reader.op_type == "Conv" and image_producer in producers and explicit


def drop_repeated_quantization(graph: ir.Graph) -> None:
    """Remove a Q behind a DQ of the same scale: it rounds to the values that are there already."""
    for node in nodes_of_type(graph, "QuantizeLinear"):
        dequantize = producer_of_type(node, "DequantizeLinear")
        if dequantize is None or dequantize.inputs[0] is None or not same_scale(node, dequantize):
            continue
        node.outputs[0].replace_all_uses_with(dequantize.inputs[0], replace_graph_outputs=True)


def drop_absorbed_rectifiers(graph: ir.Graph) -> None:
    """Remove a Relu or Clip in front of a Q whose integer range ends where it cuts."""
    for node in [*nodes_of_type(graph, "Relu"), *nodes_of_type(graph, "Clip")]:
        readers = readers_of(node.outputs[0])
        if not readers or any(reader.op_type != "QuantizeLinear" for reader in readers):
            continue
        bounds = (0.0, np.inf) if node.op_type == "Relu" else _clip_bounds(node)
        if bounds and node.inputs[0] is not None and all(range_within(reader, *bounds) for reader in readers):
            node.outputs[0].replace_all_uses_with(node.inputs[0])


def _clip_bounds(node: ir.Node) -> tuple[float, float] | None:
    bounds = [constant_value(value) for value in node.inputs[1:3]]
    if len(bounds) != 2 or bounds[0] is None or bounds[1] is None:
        return None
    return float(bounds[0]), float(bounds[1])


def quantize_biases(graph: ir.Graph) -> None:
    """Replace float biases of int8 layers by int32 in steps of input scale x weight scale, as the kernels add them.

    ONNX Runtime 1.22 fuses no convolution without this, later releases some; the minimal-build format needs it.
    """
    for node in [*nodes_of_type(graph, "Conv"), *nodes_of_type(graph, "Gemm")]:
        source, kernel = producer_of_type(node, "DequantizeLinear"), producer_of_type(node, "DequantizeLinear", 1)
        bias = constant_value(node.inputs[2]) if len(node.inputs) > 2 else None
        if source is None or kernel is None or bias is None or bias.dtype != np.float32:
            continue
        source_scale, kernel_scale = constant_value(source.inputs[1]), constant_value(kernel.inputs[1])
        if source_scale is None or kernel_scale is None:
            continue
        step = (source_scale * kernel_scale).astype(np.float32).reshape(-1)
        steps = np.round(bias.astype(np.float64) / step)
        if step.size != bias.size or np.abs(steps).max() > MAX_BIAS_STEPS:
            continue
        name = f"{node.name}.bias"
        inputs = [
            add_initializer(graph, f"{name}_int32", steps.astype(np.int32)),
            add_initializer(graph, f"{name}_scale", step),
            add_initializer(graph, f"{name}_zero", np.zeros(step.shape, np.int32)),
        ]
        dequantize = ir.node("DequantizeLinear", inputs, attributes={"axis": 0}, name=f"{name}_dequantize")
        graph.insert_before(node, dequantize)
        node.replace_input_with(2, dequantize.outputs[0])


def fold_transposed_weights(graph: ir.Graph) -> None:
    """Store an int8 weight transposed where torch writes a Transpose behind its DQ.

    With a Transpose in between neither runtime computes the product in int8.
    """
    for node in nodes_of_type(graph, "Transpose"):
        dequantize = producer_of_type(node, "DequantizeLinear")
        weight = constant_value(dequantize.inputs[0]) if dequantize is not None else None
        if (
            dequantize is None
            or weight is None
            or weight.ndim != 2
            or list(node.attributes["perm"].as_ints()) != [1, 0]
        ):
            continue
        axis = dequantize.attributes["axis"].as_int() if "axis" in dequantize.attributes else 1
        transposed = add_initializer(graph, f"{node.outputs[0].name}_int8", np.ascontiguousarray(weight.T))
        replacement = ir.node("DequantizeLinear", [transposed, *dequantize.inputs[1:]], attributes={"axis": 1 - axis})
        replace_node(graph, node, [replacement])


def strip_metadata(model: ir.Model) -> None:
    """Remove all metadata: torch writes stack traces with absolute paths into it, a third of the file."""
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
