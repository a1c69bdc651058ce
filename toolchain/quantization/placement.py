"""Which activations a Placement rounds to integers: decided once, on operations that a torch graph and an ONNX graph share.

`fxgraph` reads torch's graph into these operations, for `quantizer` to train with the rounding simulated; `candidates`
reads the ONNX graph, to be timed before anything is trained. Both ask `rounded` and therefore place the same Q/DQ pairs.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

PlaceableOperation = Literal["add", "multiply", "average", "concatenate", "activation"]  # beside the layers


@dataclass(frozen=True, kw_only=True)
class Placement:
    """What runs in integers, by `nn.Module` name and kind of operation.

    Convolution and linear layers do, but for those in `float_modules` and below ("" is the whole model). `results`
    decides how: rounded right behind the layer, which ONNX Runtime needs for integer kernels, or only where an integer
    operation reads the value, which leaves the activation functions between them in float, as OpenVINO fuses them.
    """

    float_modules: tuple[str, ...] = ()
    float_operations: tuple[PlaceableOperation, ...] = ("activation", "multiply")
    results: bool = True

    def quantizes(self, module: str) -> bool:
        """Whether operations inside `module` are quantized."""
        return not any(name in {"", module} or module.startswith(name + ".") for name in self.float_modules)


OperationKind = PlaceableOperation | Literal["layer", "rectifier", "keep", "other"]
ALL_FLOAT = Placement(float_modules=("",))  # all of a model
FUSES_RECTIFIER: frozenset[OperationKind] = frozenset({"layer", "add"})  # may have a rectifier fused behind them


@dataclass(frozen=True, kw_only=True)
class GraphOperation:
    """One operation on activations; weights are no inputs of it."""

    name: str
    kind: OperationKind
    module: str  # of the `nn.Module` it was traced from
    inputs: tuple[str, ...]  # names of the float activations it reads
    output: str


@dataclass(frozen=True, kw_only=True)
class OperationQuantization:
    """What of one operation is rounded."""

    inputs: tuple[str, ...] = ()
    output: bool = False
    shared_scale: bool = False  # all that is rounded has the scale of the first input


def resolve(ops: Sequence[GraphOperation], placement: Placement) -> dict[str, OperationQuantization]:
    """Rounding by operation name; operations without any are left out.

    A layer or an addition and the rectifier behind it are one unit without rounding in between. Pooling by maximum and
    reshaping keep their input's scale, so that the runtimes can run them on integers, where integers come in or integer
    layers read what comes out. An average has a smaller range than its input and gets a scale of its own.

    Args:
        ops: the whole graph, in an order in which it can run.
        placement: what is wanted.
    """
    readers: dict[str, list[GraphOperation]] = {}
    for op in ops:
        for value in op.inputs:
            readers.setdefault(value, []).append(op)
    found: dict[str, OperationQuantization] = {}
    at_source = set[str]()  # values that are rounded where they are made
    for op in ops:
        if op.name in found:  # a rectifier, done with its unit
            continue
        one = _rounding(op, placement, at_source, readers)
        if one is None:
            continue
        behind = readers.get(op.output, [])
        if one.output and op.kind in FUSES_RECTIFIER and len(behind) == 1 and behind[0].kind == "rectifier":
            found[behind[0].name] = OperationQuantization(output=True)
            at_source.add(behind[0].output)
            one = OperationQuantization(inputs=one.inputs)
        elif one.output:
            at_source.add(op.output)
        found[op.name] = one
    return found


def _rounding(
    op: GraphOperation, placement: Placement, at_source: set[str], readers: Mapping[str, Sequence[GraphOperation]]
) -> OperationQuantization | None:
    if op.kind in {"other", "rectifier"} or not placement.quantizes(op.module):
        return None
    if op.kind == "layer":
        return OperationQuantization(inputs=op.inputs[:1], output=placement.results)
    if op.kind == "keep":
        integer = op.inputs[0] in at_source or _read_by_layers(op, readers, placement)
        return OperationQuantization(inputs=op.inputs[:1], output=True, shared_scale=True) if integer else None
    if op.kind in placement.float_operations:
        return None
    shared = op.kind == "concatenate"  # of integers of one scale: what comes out is rounded already
    return OperationQuantization(inputs=op.inputs, output=placement.results or shared, shared_scale=shared)


def _read_by_layers(op: GraphOperation, readers: Mapping[str, Sequence[GraphOperation]], placement: Placement) -> bool:
    """Whether a value is read by integer layers alone, perhaps through more reshaping: then it may be rounded early."""
    behind = readers.get(op.output, [])
    return bool(behind) and all(
        placement.quantizes(reader.module)
        and (reader.kind == "layer" or (reader.kind == "keep" and _read_by_layers(reader, readers, placement)))
        for reader in behind
    )


def quantized_edges(
    ops: Sequence[GraphOperation], roundings: Mapping[str, OperationQuantization]
) -> set[tuple[str, str]]:
    """Which operation reads which value rounded: (value, name of the reader)."""
    found = set[tuple[str, str]]()
    for op in ops:
        one = roundings.get(op.name)
        if one is None:
            continue
        found |= {(value, op.name) for value in one.inputs}
        if one.output:
            found |= {(op.output, reader.name) for reader in ops if op.output in reader.inputs}
    return found


def leave_in_float(one: Placement, modules: Sequence[str]) -> Placement:
    """The same with further modules in float."""
    return dataclasses.replace(one, float_modules=tuple(dict.fromkeys((*one.float_modules, *modules))))


def quantized_layers(ops: Sequence[GraphOperation], placement: Placement) -> tuple[str, ...]:
    """Modules of the convolution and linear layers that are to run in integers."""
    return tuple(op.module for op in ops if op.kind == "layer" and placement.quantizes(op.module))


def split_into_blocks(modules: Sequence[str], most: int) -> list[str]:
    """Module names that divide layers into at most `most` parts along the model's own structure.

    Args:
        modules: names of layers, in running order.
        most: parts wanted at the most; the largest part is divided first.
    """
    parts = _children(modules, "")
    while True:
        for name in sorted(parts, key=lambda part: -len(parts[part])):
            inner = _children(parts[name], name)
            if len(inner) > 1 and len(parts) - 1 + len(inner) <= most:
                break
        else:
            return list(parts)
        at = list(parts).index(name)
        items = list(parts.items())
        parts = dict([*items[:at], *inner.items(), *items[at + 1 :]])


def _children(modules: Sequence[str], parent: str) -> Mapping[str, list[str]]:
    """Layers by the part of `parent` they lie in; a part with a single child is named after that child."""
    found: dict[str, list[str]] = {}
    for module in modules:
        rest = module.removeprefix(parent).lstrip(".") if parent else module
        first = rest.partition(".")[0]
        found.setdefault(f"{parent}.{first}" if parent and first else first or parent, []).append(module)
    if len(found) == 1:
        (only,) = found
        deeper = only != parent and any(module != only for module in modules)
        return _children(modules, only) if deeper else found
    return found
