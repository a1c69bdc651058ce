"""A Placement on a float ONNX graph, with scales that are made up: a candidate that can be timed before any training.

Latency does not depend on what the scales are, only on where Q/DQ stand and which values share them. A candidate
takes about a second; the same placement through torch takes twenty.
"""

from collections.abc import Mapping, Sequence
from itertools import count

import numpy as np
import onnx_ir as ir

from toolchain.config.target import QuantScheme
from toolchain.export.passes import cleanup
from toolchain.quantization import placement
from toolchain.quantization.placement import GraphOperation, OperationKind, OperationQuantization, Placement

OPERATION_KINDS: dict[str, OperationKind] = {
    **dict.fromkeys(("Conv", "Gemm", "MatMul"), "layer"),
    **dict.fromkeys(("Relu", "Clip"), "rectifier"),
    "Add": "add",
    "Mul": "multiply",
    "Concat": "concatenate",
    **dict.fromkeys(("GlobalAveragePool", "AveragePool", "ReduceMean"), "average"),
    **dict.fromkeys(("Sigmoid", "HardSigmoid"), "activation"),
    **dict.fromkeys(("MaxPool", "Reshape", "Flatten", "Pad", "Transpose", "Slice"), "keep"),
}
# made-up ranges, with rectifiers and gates as they would be absorbed
PLACEHOLDER_RANGES = {"Relu": (0.0, 6.0), "Clip": (0.0, 6.0), "Sigmoid": (0.0, 1.0), "HardSigmoid": (0.0, 1.0)}
DEFAULT_RANGE = (-6.0, 6.0)


def build_candidate(base: ir.Model, chosen: Placement, scheme: QuantScheme) -> tuple[ir.Model, tuple[str, ...]]:
    """A copy of a float graph with Q/DQ as `chosen` says, cleaned as an export is.

    Args:
        base: as `onnx_export.translate` gives it, with the names of the modules still inside.
        chosen: where to quantize.
        scheme: integer types.

    Returns:
        the candidate, and the modules of the layers that are to run in integers.
    """
    model = base.clone()
    graph = model.graph
    cleanup.name_layers(graph)
    ops = list_operations(graph)
    values = {str(value.name): value for node in graph for value in node.outputs} | {
        str(v.name): v for v in graph.inputs
    }
    nodes = {node.outputs[0].name: node for node in graph}
    roundings = placement.resolve(ops, chosen)
    writer = _Writer(graph, scheme, values, _shared(ops, roundings))
    for op in ops:
        rounding = roundings.get(op.name)
        if rounding is None:
            continue
        node = nodes[op.name]
        if op.kind == "layer":
            writer.weight(node)
        for name in rounding.inputs:
            writer.read(node, values[name])
        if rounding.output:
            writer.write(values[op.output])
    return cleanup.clean(model), placement.quantized_layers(ops, chosen)


def list_operations(graph: ir.Graph) -> list[GraphOperation]:
    """The graph as `placement` reads it; a bias added behind a matrix product belongs to the product."""
    found, biases = [], dict[str, str]()
    for node in graph:
        output = str(node.outputs[0].name)
        if output in biases.values():
            continue
        inputs = [value for value in node.inputs if value is not None and cleanup.constant_value(value) is None]
        kind = OPERATION_KINDS.get(node.op_type, "other")
        if kind == "layer" and (len(inputs) != 1 or inputs[0] is not node.inputs[0]):
            kind = "other"  # a product of two activations
        if kind in {"add", "multiply"} and len(inputs) != 2:
            kind = "other"
        end = _bias_behind(node) if node.op_type == "MatMul" and kind == "layer" else None
        if end is not None:
            biases[output] = str(end.outputs[0].name)
        found.append(
            GraphOperation(
                name=output, kind=kind, module=module_name(node), inputs=tuple(str(value.name) for value in inputs),
                output=biases.get(output, output),
            )
        )  # fmt: skip
    ends = tuple(str(value.name) for value in graph.outputs)
    return [*found, GraphOperation(name="output", kind="other", module="", inputs=ends, output="output")]


def module_name(node: ir.Node) -> str:
    """Name of the innermost `nn.Module` that a node was traced from; "" where torch does not say."""
    scopes = node.metadata_props.get("pkg.torch.onnx.name_scopes", "[]").strip("[]").replace("'", "").split(", ")
    return (scopes[-2:] or [""])[0] if len(scopes) > 1 else ""


def _bias_behind(node: ir.Node) -> ir.Node | None:
    behind = [use.node for use in node.outputs[0].uses()]
    single = len(behind) == 1 and behind[0].op_type == "Add"
    return (
        behind[0] if single and any(cleanup.constant_value(value) is not None for value in behind[0].inputs) else None
    )


def _shared(ops: Sequence[GraphOperation], roundings: Mapping[str, OperationQuantization]) -> dict[str, str]:
    """Values that have one scale together: each by name, with the name of the one that stands for all."""
    stands_for: dict[str, str] = {}

    def top(name: str) -> str:
        while stands_for.get(name, name) != name:
            name = stands_for[name]
        return name

    for op in ops:
        rounding = roundings.get(op.name)
        if rounding is not None and rounding.shared_scale:
            for other in (*rounding.inputs, op.output):
                stands_for[top(other)] = top(rounding.inputs[0])
    return {name: top(name) for name in stands_for}


def _range(value: ir.Value) -> tuple[float, float]:
    """A made-up range that a value may have: what rectifiers and gates leave, wherever it is moved."""
    producer = value.producer()
    if producer is None:
        return DEFAULT_RANGE
    kind = OPERATION_KINDS.get(producer.op_type)
    if kind in {"keep", "concatenate"}:
        sources = [one for one in producer.inputs if one is not None and cleanup.constant_value(one) is None]
        ranges = [_range(one) for one in (sources if kind == "concatenate" else sources[:1])]
        return min(low for low, _ in ranges), max(high for _, high in ranges)
    return PLACEHOLDER_RANGES.get(producer.op_type, DEFAULT_RANGE)


class _Writer:
    """Adds Q/DQ pairs, one for each value, each with a scale of its own unless it shares another's."""

    def __init__(
        self, graph: ir.Graph, scheme: QuantScheme, values: Mapping[str, ir.Value], shared: Mapping[str, str]
    ) -> None:
        self.graph, self.scheme, self.shared = graph, scheme, shared
        together: dict[str, list[tuple[float, float]]] = {}
        for name in values:  # before any pair stands in between
            together.setdefault(shared.get(name, name), []).append(_range(values[name]))
        self.ranges = {name: (min(r[0] for r in found), max(r[1] for r in found)) for name, found in together.items()}
        self.numbers = count(1)
        self.real: dict[str, ir.Value] = {}  # what to read in place of a value, by its name
        self.scales: dict[str, tuple[ir.Value, ir.Value]] = {}

    def write(self, value: ir.Value) -> None:
        """Rounds a value for all who read it."""
        readers = list(value.uses())
        rounded = self._pair(value)
        for use in readers:
            use.node.replace_input_with(use.idx, rounded)
        for index, output in enumerate(self.graph.outputs):
            if output is value:
                rounded.name, value.name = value.name, f"{value.name}_float"
                rounded.shape, rounded.type = value.shape, value.type
                self.graph.outputs[index] = rounded

    def read(self, node: ir.Node, value: ir.Value) -> None:
        """Rounds a value for one who reads it."""
        if str(value.name) not in self.real:
            self._pair(value)
        for index, source in enumerate(node.inputs):
            if source is value:
                node.replace_input_with(index, self.real[str(value.name)])

    def weight(self, node: ir.Node) -> None:
        """Replaces a float kernel by an int8 one, symmetric, with a scale for each output channel."""
        value = node.inputs[1]
        kernel = cleanup.constant_value(value)
        assert kernel is not None
        assert value is not None
        axis = kernel.ndim - 1 if node.op_type == "MatMul" else 0
        others = tuple(i for i in range(kernel.ndim) if i != axis)
        levels = 2 ** (self.scheme.weight_bits - 1) - 1
        scale = np.maximum(np.abs(kernel).max(axis=others), 1e-6).astype(np.float32) / levels
        steps = np.round(kernel / np.expand_dims(scale, others)).astype(np.int8)
        inputs = [
            cleanup.add_initializer(self.graph, f"{value.name}_int8", steps),
            cleanup.add_initializer(self.graph, f"{value.name}_scale", scale),
            cleanup.add_initializer(self.graph, f"{value.name}_zero", np.zeros(scale.shape, np.int8)),
        ]
        real = ir.node("DequantizeLinear", inputs, attributes={"axis": axis})
        self.graph.insert_before(node, real)
        node.replace_input_with(1, real.outputs[0])

    def scale_of(self, value: ir.Value) -> tuple[ir.Value, ir.Value]:
        """Scale and zero point of a value."""
        name = self.shared.get(str(value.name), str(value.name))
        if name not in self.scales:
            low, high = self.ranges[name]
            dtype = np.dtype(self.scheme.activations)
            limits = np.iinfo(dtype)
            step = (high - low) / 255 * (1 - 1e-3 * next(self.numbers) / 1000)
            zero = round(limits.min - low / step)
            self.scales[name] = (
                cleanup.add_initializer(self.graph, f"{name}_step", np.asarray(step, np.float32)),
                cleanup.add_initializer(self.graph, f"{name}_zero", np.asarray(zero, dtype)),
            )
        return self.scales[name]

    def _pair(self, value: ir.Value) -> ir.Value:
        scale = list(self.scale_of(value))
        quantize = ir.node("QuantizeLinear", [value, *scale])
        dequantize = ir.node("DequantizeLinear", [quantize.outputs[0], *scale])
        for index, node in enumerate((quantize, dequantize)):
            node.outputs[0].name = f"{value.name}_{('q', 'dq')[index]}"
            node.outputs[0].shape = value.shape
        quantize.outputs[0].type, dequantize.outputs[0].type = scale[1].type, value.type
        producer = value.producer()
        if producer is None:
            self.graph.insert_before(next(iter(self.graph)), [quantize, dequantize])
        else:
            self.graph.insert_after(producer, [quantize, dequantize])
        self.real[str(value.name)] = dequantize.outputs[0]
        return dequantize.outputs[0]
