"""Q/DQ placement: which activations are quantized, decided on operations that a torch graph and an ONNX graph share.

`fx_graph` reads torch's graph into these operations, so that `pt2e` can train with quantization simulated;
`export.insert_qdq` reads the ONNX graph, which is timed before anything is trained. Both call `resolve` and therefore
place the same Q/DQ pairs.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

PlaceableOperation = Literal["add", "multiply", "average", "concatenate", "activation"]  # beside the layers


@dataclass(frozen=True, kw_only=True)
class Placement:
    """What is quantized, by `nn.Module` name and kind of operation.

    Convolution and linear layers are, except those in `float_modules` and below ("" is the whole model). With `results`
    a layer's output is quantized right behind the layer, which ONNX Runtime needs for its int8 kernels. Without it, a
    value is quantized only where a quantized operation reads it: the activation functions in between stay in float, as
    OpenVINO fuses them.
    """

    float_modules: tuple[str, ...] = ()
    float_operations: tuple[PlaceableOperation, ...] = ("activation", "multiply")
    results: bool = True

    def quantizes(self, module: str) -> bool:
        """Return whether operations inside `module` are quantized."""
        return not any(name in {"", module} or module.startswith(name + ".") for name in self.float_modules)


OperationKind = PlaceableOperation | Literal["layer", "rectifier", "keep", "other"]
ALL_FLOAT = Placement(float_modules=("",))  # the whole model
FUSES_RECTIFIER: frozenset[OperationKind] = frozenset({"layer", "add"})  # runtimes fuse a rectifier behind them


@dataclass(frozen=True, kw_only=True)
class GraphOperation:
    """One operation on activations; weights do not count as its inputs."""

    name: str
    kind: OperationKind
    module: str  # name of the `nn.Module` it was traced from
    inputs: tuple[str, ...]  # names of the float activations it reads
    output: str


@dataclass(frozen=True, kw_only=True)
class OperationQuantization:
    """Which inputs of one operation are quantized, and whether its output is."""

    inputs: tuple[str, ...] = ()
    output: bool = False
    shared_scale: bool = False  # all quantized values have the scale of the first input


def resolve(ops: Sequence[GraphOperation], placement: Placement) -> dict[str, OperationQuantization]:
    """Return what is quantized, by operation name; operations without quantization are left out.

    A layer or an addition and the rectifier behind it are one unit without quantization in between. Max pooling and
    reshaping keep their input's scale, so that the runtimes can run them on integers; they are quantized where their
    input is, or where only quantized layers read their output. An average has a smaller range than its input and gets a
    scale of its own.

    Args:
        ops: the whole graph, in running order.
        placement: the placement to apply.
    """
    readers: dict[str, list[GraphOperation]] = {}
    for op in ops:
        for value in op.inputs:
            readers.setdefault(value, []).append(op)
    quantizations: dict[str, OperationQuantization] = {}
    quantized_values = set[str]()  # values that are quantized where they are computed
    for op in ops:
        if op.name in quantizations:  # a rectifier, handled with its unit
            continue
        quantization = _quantize_operation(op, placement, quantized_values, readers)
        if quantization is None:
            continue
        output_readers = readers.get(op.output, [])
        rectified = len(output_readers) == 1 and output_readers[0].kind == "rectifier"
        if quantization.output and op.kind in FUSES_RECTIFIER and rectified:
            rectifier = output_readers[0]
            quantizations[rectifier.name] = OperationQuantization(output=True)
            quantized_values.add(rectifier.output)
            quantization = OperationQuantization(inputs=quantization.inputs)
        elif quantization.output:
            quantized_values.add(op.output)
        quantizations[op.name] = quantization
    return quantizations


def _quantize_operation(
    op: GraphOperation,
    placement: Placement,
    quantized_values: set[str],
    readers: Mapping[str, Sequence[GraphOperation]],
) -> OperationQuantization | None:
    if op.kind in {"other", "rectifier"} or not placement.quantizes(op.module):
        return None
    if op.kind == "layer":
        return OperationQuantization(inputs=op.inputs[:1], output=placement.results)
    if op.kind == "keep":
        quantized = op.inputs[0] in quantized_values or _only_layers_read(op, readers, placement)
        return OperationQuantization(inputs=op.inputs[:1], output=True, shared_scale=True) if quantized else None
    if op.kind in placement.float_operations:
        return None
    shared = op.kind == "concatenate"  # of integers of one scale: its output needs no rounding of its own
    return OperationQuantization(inputs=op.inputs, output=placement.results or shared, shared_scale=shared)


def _only_layers_read(
    op: GraphOperation, readers: Mapping[str, Sequence[GraphOperation]], placement: Placement
) -> bool:
    """Return whether only quantized layers read the output, perhaps through more reshaping: then quantize it early."""
    output_readers = readers.get(op.output, [])
    return bool(output_readers) and all(
        placement.quantizes(reader.module)
        and (reader.kind == "layer" or (reader.kind == "keep" and _only_layers_read(reader, readers, placement)))
        for reader in output_readers
    )


def quantized_edges(
    ops: Sequence[GraphOperation], quantizations: Mapping[str, OperationQuantization]
) -> set[tuple[str, str]]:
    """Return the edges with a quantized value, as pairs (value, name of the operation that reads it)."""
    edges = set[tuple[str, str]]()
    for op in ops:
        quantization = quantizations.get(op.name)
        if quantization is None:
            continue
        edges |= {(value, op.name) for value in quantization.inputs}
        if quantization.output:
            edges |= {(op.output, reader.name) for reader in ops if op.output in reader.inputs}
    return edges


def leave_in_float(placement: Placement, modules: Sequence[str]) -> Placement:
    """Return the placement with further modules in float."""
    float_modules = tuple(dict.fromkeys((*placement.float_modules, *modules)))
    return dataclasses.replace(placement, float_modules=float_modules)


def quantized_layers(ops: Sequence[GraphOperation], placement: Placement) -> tuple[str, ...]:
    """Return the modules of the convolution and linear layers that are quantized."""
    return tuple(op.module for op in ops if op.kind == "layer" and placement.quantizes(op.module))


def split_into_blocks(modules: Sequence[str], limit: int) -> list[str]:
    """Return module names that divide layers into at most `limit` blocks along the model's own structure.

    Args:
        modules: names of layers, in running order.
        limit: highest number of blocks; the block with the most layers is divided first.
    """
    blocks = _group_by_child(modules, "")
    while True:
        for name in sorted(blocks, key=lambda block: -len(blocks[block])):
            children = _group_by_child(blocks[name], name)
            if len(children) > 1 and len(blocks) - 1 + len(children) <= limit:
                break
        else:
            return list(blocks)
        index = list(blocks).index(name)
        items = list(blocks.items())
        blocks = dict([*items[:index], *children.items(), *items[index + 1 :]])


def _group_by_child(modules: Sequence[str], parent: str) -> Mapping[str, list[str]]:
    """Return layers by the child of `parent` that they lie in; a child with a single child is named after that one."""
    groups: dict[str, list[str]] = {}
    for module in modules:
        rest = module.removeprefix(parent).lstrip(".") if parent else module
        child = rest.partition(".")[0]
        groups.setdefault(f"{parent}.{child}" if parent and child else child or parent, []).append(module)
    if len(groups) == 1:
        (only,) = groups
        can_divide = only != parent and any(module != only for module in modules)
        return _group_by_child(modules, only) if can_divide else groups
    return groups
