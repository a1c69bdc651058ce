"""Insertion of Q/DQ into a float ONNX graph with placeholder scales: a placement that can be timed before any training.

Latency does not depend on the values of the scales, only on where Q/DQ pairs stand and which values share a scale. A
candidate takes about a second; the same placement through torch takes twenty.
"""

from collections.abc import Mapping, Sequence
from itertools import count

import numpy as np
import onnx_ir as ir

from toolchain.config.target import QuantScheme
from toolchain.export.onnx_graph import WEIGHTED_OPS, add_initializer, constant_value, module_name, readers_of
from toolchain.export.passes import cleanup
from toolchain.quantization import placement
from toolchain.quantization.placement import GraphOperation, OperationKind, OperationQuantization, Placement

OPERATION_KINDS: dict[str, OperationKind] = {
    **dict.fromkeys(WEIGHTED_OPS, "layer"),
    **dict.fromkeys(("Relu", "Clip"), "rectifier"),
    "Add": "add",
    "Mul": "multiply",
    "Concat": "concatenate",
    **dict.fromkeys(("GlobalAveragePool", "AveragePool", "ReduceMean"), "average"),
    **dict.fromkeys(("Sigmoid", "HardSigmoid"), "activation"),
    **dict.fromkeys(("MaxPool", "Reshape", "Flatten", "Pad", "Transpose", "Slice"), "keep"),
}
# placeholder ranges; those of rectifiers and gates make `cleanup` absorb them as it does in a trained model
PLACEHOLDER_RANGES = {"Relu": (0.0, 6.0), "Clip": (0.0, 6.0), "Sigmoid": (0.0, 1.0), "HardSigmoid": (0.0, 1.0)}
DEFAULT_RANGE = (-6.0, 6.0)
MIN_ACTIVATION_SCALE = float(np.finfo(np.float32).eps)  # as torchao has it
MIN_WEIGHT_SCALE = 1e-6  # as in `pt2e`: keeps the int32 bias of a dead channel in range
Range = tuple[float, float]  # lowest and highest value


def build_candidate(base: ir.Model, chosen: Placement, scheme: QuantScheme) -> tuple[ir.Model, tuple[str, ...]]:
    """Return a copy of a float graph with Q/DQ as `chosen` says, cleaned as an exported graph is.

    Args:
        base: as `to_onnx.export_graph` returns it, with the names of the modules still inside.
        chosen: where to quantize.
        scheme: integer types.

    Returns:
        the candidate, and the modules of the layers that are quantized.
    """
    return cleanup.clean(insert(base, chosen, scheme)), list_quantized_layers(base, chosen)


def list_quantized_layers(base: ir.Model, chosen: Placement) -> tuple[str, ...]:
    """Return the modules of the layers that a placement quantizes."""
    return placement.quantized_layers(list_operations(base.graph), chosen)


def group_quantized_values(base: ir.Model, chosen: Placement) -> dict[str, tuple[str, ...]]:
    """Return the values that a placement quantizes, grouped by scale, under the name of the value that stands for each."""
    ops = list_operations(base.graph)
    quantizations = placement.resolve(ops, chosen)
    shared_scales = _find_shared_scales(ops, quantizations)
    groups: dict[str, dict[str, None]] = {}
    for op in ops:
        quantization = quantizations.get(op.name)
        if quantization is not None:
            for name in (*quantization.inputs, *([op.output] if quantization.output else [])):
                groups.setdefault(shared_scales.get(name, name), {})[name] = None
    return {representative: tuple(names) for representative, names in groups.items()}


def insert(
    base: ir.Model, chosen: Placement, scheme: QuantScheme, ranges: Mapping[str, Range] | None = None
) -> ir.Model:
    """Return a copy of a float graph with Q/DQ as `chosen` says, all else as it is.

    Args:
        base: with the names of the modules inside.
        chosen: where to quantize.
        scheme: integer types.
        ranges: lowest and highest value of each group of `group_quantized_values`; None: placeholders.
    """
    model = base.clone()
    graph = model.graph
    cleanup.name_layers(graph)
    ops = list_operations(graph)
    values = {str(value.name): value for node in graph for value in node.outputs}
    values |= {str(value.name): value for value in graph.inputs}
    nodes = {node.outputs[0].name: node for node in graph}
    quantizations = placement.resolve(ops, chosen)
    inserter = _QdqInserter(graph, scheme, values, _find_shared_scales(ops, quantizations), ranges)
    for op in ops:
        quantization = quantizations.get(op.name)
        if quantization is None:
            continue
        node = nodes[op.name]
        if op.kind == "layer":
            inserter.quantize_weight(node)
        for name in quantization.inputs:
            inserter.quantize_input(node, values[name])
        if quantization.output:
            inserter.quantize_output(values[op.output])
    return model


def list_operations(graph: ir.Graph) -> list[GraphOperation]:
    """Return the graph's operations for `placement`; a bias added behind a matrix product belongs to the product."""
    operations, biased_outputs = [], dict[str, str]()  # output of a product -> output of the addition of its bias
    for node in graph:
        output = str(node.outputs[0].name)
        if output in biased_outputs.values():
            continue
        inputs = [value for value in node.inputs if value is not None and constant_value(value) is None]
        kind = OPERATION_KINDS.get(node.op_type, "other")
        if kind == "layer" and (len(inputs) != 1 or inputs[0] is not node.inputs[0]):
            kind = "other"  # a product of two activations
        if kind in {"add", "multiply"} and len(inputs) != 2:
            kind = "other"
        addition = _bias_addition(node) if node.op_type == "MatMul" and kind == "layer" else None
        if addition is not None:
            biased_outputs[output] = str(addition.outputs[0].name)
        operations.append(
            GraphOperation(
                name=output, kind=kind, module=module_name(node), inputs=tuple(str(value.name) for value in inputs),
                output=biased_outputs.get(output, output),
            )
        )  # fmt: skip
    outputs = tuple(str(value.name) for value in graph.outputs)
    return [*operations, GraphOperation(name="output", kind="other", module="", inputs=outputs, output="output")]


def _bias_addition(product: ir.Node) -> ir.Node | None:
    readers = readers_of(product.outputs[0])
    if len(readers) != 1 or readers[0].op_type != "Add":
        return None
    return readers[0] if any(constant_value(value) is not None for value in readers[0].inputs) else None


def _find_shared_scales(
    ops: Sequence[GraphOperation], quantizations: Mapping[str, OperationQuantization]
) -> dict[str, str]:
    """Return the values that share a scale with others, each with the name of the value that represents its group."""
    parents: dict[str, str] = {}

    def representative(name: str) -> str:
        while parents.get(name, name) != name:
            name = parents[name]
        return name

    for op in ops:
        quantization = quantizations.get(op.name)
        if quantization is not None and quantization.shared_scale:
            for other in (*quantization.inputs, op.output):
                parents[representative(other)] = representative(quantization.inputs[0])
    return {name: representative(name) for name in parents}


def _placeholder_range(value: ir.Value) -> tuple[float, float]:
    """Return a plausible range: that of the rectifier or gate that bounds the value, also through data movement."""
    producer = value.producer()
    if producer is None:
        return DEFAULT_RANGE
    kind = OPERATION_KINDS.get(producer.op_type)
    if kind in {"keep", "concatenate"}:
        sources = [source for source in producer.inputs if source is not None and constant_value(source) is None]
        ranges = [_placeholder_range(source) for source in (sources if kind == "concatenate" else sources[:1])]
        return _union(ranges)
    return PLACEHOLDER_RANGES.get(producer.op_type, DEFAULT_RANGE)


def _union(ranges: Sequence[tuple[float, float]]) -> tuple[float, float]:
    return min(low for low, _ in ranges), max(high for _, high in ranges)


def compute_scale(low: float, high: float, lowest_integer: int) -> tuple[float, int]:
    """Return scale and zero point of a calibrated range, which is widened to contain zero, as torchao computes them."""
    low, high = min(low, 0.0), max(high, 0.0)
    step = max(float(np.float32(high - low) / np.float32(255)), MIN_ACTIVATION_SCALE)
    return step, min(lowest_integer + 255, max(lowest_integer, lowest_integer - round(low / step)))


class _QdqInserter:
    """Inserts Q/DQ pairs, one for each value, each with its own scale unless it shares another value's."""

    def __init__(
        self, graph: ir.Graph, scheme: QuantScheme, values: Mapping[str, ir.Value], shared_scales: Mapping[str, str],
        calibrated: Mapping[str, Range] | None,
    ) -> None:  # fmt: skip
        self.graph, self.scheme, self.shared_scales, self.calibrated = graph, scheme, shared_scales, calibrated
        grouped_ranges: dict[str, list[tuple[float, float]]] = {}
        for name in values:  # before a Q/DQ pair hides the producer of a value
            grouped_ranges.setdefault(shared_scales.get(name, name), []).append(_placeholder_range(values[name]))
        self.ranges = {name: _union(ranges) for name, ranges in grouped_ranges.items()}
        self.scale_numbers = count(1)
        self.dequantized: dict[str, ir.Value] = {}  # name of a value -> the dequantized one to read instead
        self.scales: dict[str, tuple[ir.Value, ir.Value]] = {}

    def quantize_output(self, value: ir.Value) -> None:
        """Quantize a value for all its readers."""
        uses = list(value.uses())
        dequantized = self._insert_pair(value)
        for use in uses:
            use.node.replace_input_with(use.idx, dequantized)
        for index, output in enumerate(self.graph.outputs):
            if output is value:
                dequantized.name, value.name = value.name, f"{value.name}_float"
                dequantized.shape, dequantized.type = value.shape, value.type
                self.graph.outputs[index] = dequantized

    def quantize_input(self, node: ir.Node, value: ir.Value) -> None:
        """Quantize a value for one node that reads it."""
        if str(value.name) not in self.dequantized:
            self._insert_pair(value)
        for index, source in enumerate(node.inputs):
            if source is value:
                node.replace_input_with(index, self.dequantized[str(value.name)])

    def quantize_weight(self, node: ir.Node) -> None:
        """Replace a float kernel by an int8 one, symmetric, with a scale for each output channel."""
        value = node.inputs[1]
        kernel = constant_value(value)
        assert kernel is not None
        assert value is not None
        axis = kernel.ndim - 1 if node.op_type == "MatMul" else 0
        all_but_channels = tuple(i for i in range(kernel.ndim) if i != axis)
        levels = 2 ** (self.scheme.weight_bits - 1) - 1
        scale = np.maximum(np.abs(kernel).max(axis=all_but_channels).astype(np.float32) / levels, MIN_WEIGHT_SCALE)
        steps = np.round(kernel / np.expand_dims(scale, all_but_channels)).clip(-levels, levels).astype(np.int8)
        inputs = [
            add_initializer(self.graph, f"{value.name}_int8", steps),
            add_initializer(self.graph, f"{value.name}_scale", scale),
            add_initializer(self.graph, f"{value.name}_zero", np.zeros(scale.shape, np.int8)),
        ]
        dequantize = ir.node("DequantizeLinear", inputs, attributes={"axis": axis})
        self.graph.insert_before(node, dequantize)
        node.replace_input_with(1, dequantize.outputs[0])

    def _scale_and_zero_point(self, value: ir.Value) -> tuple[ir.Value, ir.Value]:
        name = self.shared_scales.get(str(value.name), str(value.name))
        if name not in self.scales:
            dtype = np.dtype(self.scheme.activations)
            limits = np.iinfo(dtype)
            if self.calibrated is not None:
                low, high = self.calibrated[name]
                step, zero_point = compute_scale(low, high, limits.min)
            else:
                low, high = self.ranges[name]
                # all scales differ a little, so that no Q looks like a repetition of the DQ before it
                step = (high - low) / 255 * (1 - 1e-3 * next(self.scale_numbers) / 1000)
                zero_point = round(limits.min - low / step)
            self.scales[name] = (
                add_initializer(self.graph, f"{name}_step", np.asarray(step, np.float32)),
                add_initializer(self.graph, f"{name}_zero", np.asarray(zero_point, dtype)),
            )
        return self.scales[name]

    def _insert_pair(self, value: ir.Value) -> ir.Value:
        scale, zero_point = self._scale_and_zero_point(value)
        quantize = ir.node("QuantizeLinear", [value, scale, zero_point])
        dequantize = ir.node("DequantizeLinear", [quantize.outputs[0], scale, zero_point])
        for node, suffix in ((quantize, "q"), (dequantize, "dq")):
            node.outputs[0].name = f"{value.name}_{suffix}"
            node.outputs[0].shape = value.shape
        quantize.outputs[0].type, dequantize.outputs[0].type = zero_point.type, value.type
        producer = value.producer()
        if producer is None:
            self.graph.insert_before(next(iter(self.graph)), [quantize, dequantize])
        else:
            self.graph.insert_after(producer, [quantize, dequantize])
        self.dequantized[str(value.name)] = dequantize.outputs[0]
        return dequantize.outputs[0]
