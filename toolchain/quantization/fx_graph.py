"""Torch graphs for quantization: read into the operations of `placement`, restricted to a placement, and lowered into
operations that the runtimes have in int8.
"""

import copy
import operator
from collections.abc import Mapping
from typing import Any, cast

import torch
from torch import Tensor
from torch.fx import Graph, GraphModule, Node

from toolchain.quantization.placement import GraphOperation, OperationKind, Placement, quantized_edges, resolve

ATEN = torch.ops.aten
OPERATION_KINDS: Mapping[Any, OperationKind] = {
    **dict.fromkeys((ATEN.conv2d.default, ATEN.linear.default), "layer"),
    **dict.fromkeys((ATEN.relu.default, ATEN.relu6.default, ATEN.hardtanh.default), "rectifier"),
    ATEN.add.Tensor: "add",
    ATEN.mul.Tensor: "multiply",
    ATEN.cat.default: "concatenate",
    **dict.fromkeys((ATEN.avg_pool2d.default, ATEN.adaptive_avg_pool2d.default, ATEN.mean.dim), "average"),
    **dict.fromkeys((ATEN.sigmoid.default, ATEN.hardsigmoid.default), "activation"),
    **dict.fromkeys(
        (
            ATEN.pad.default, ATEN.constant_pad_nd.default, ATEN.max_pool2d.default, ATEN.view.default,
            ATEN.reshape.default, ATEN.flatten.using_ints, ATEN.dropout.default, ATEN.permute.default,
            ATEN.transpose.int, ATEN.contiguous.default, ATEN.slice.Tensor,
        ),
        "keep",
    ),
}  # fmt: skip
OUT_OF_PLACE = {
    ATEN.relu_.default: ATEN.relu.default, ATEN.hardtanh_.default: ATEN.hardtanh.default,
    ATEN.relu6_.default: ATEN.relu6.default, ATEN.add_.Tensor: ATEN.add.Tensor, ATEN.mul_.Tensor: ATEN.mul.Tensor,
    ATEN.silu_.default: ATEN.silu.default, ATEN.hardswish_.default: ATEN.hardswish.default,
    ATEN.sigmoid_.default: ATEN.sigmoid.default, ATEN.hardsigmoid_.default: ATEN.hardsigmoid.default,
    ATEN.dropout_.default: ATEN.dropout.default,
}  # fmt: skip
LAYER_TARGETS = {target for target, kind in OPERATION_KINDS.items() if kind == "layer"}
GATE_TARGETS = {ATEN.silu.default: ATEN.sigmoid.default, ATEN.hardswish.default: ATEN.hardsigmoid.default}


def module_name(node: Node) -> str:
    """Return the name of the innermost `nn.Module` that a graph node was traced from; "" for the model itself."""
    stack = node.meta.get("nn_module_stack") or {}
    path = next(reversed(stack.values()))[0] if stack else ""
    return str(path).removeprefix("L['self'].").removeprefix("L['self']")


def is_fake_quantize(model: GraphModule, node: Node) -> bool:
    """Return whether a node is a fake quantization that `pt2e.prepare` inserted."""
    return node.op == "call_module" and hasattr(model.get_submodule(str(node.target)), "fake_quant_enabled")


def find_float_source(model: GraphModule, node: Node) -> Node:
    """Return the float value that a node's fake quantizations read, or the node itself where it is none."""
    while is_fake_quantize(model, node):
        node = cast(Node, node.args[0])
    return node


def list_operations(model: GraphModule) -> list[GraphOperation]:
    """Return the graph's operations for `placement`, the same with and without fake quantization inside."""
    operations = []
    for node in model.graph.nodes:
        if node.op not in {"call_function", "output"}:
            continue
        kind = OPERATION_KINDS.get(node.target, "other")
        sources = [find_float_source(model, source) for source in node.all_input_nodes]
        inputs = [source for source in sources if source.op != "get_attr" and (_is_float(source) or kind == "other")]
        if kind == "layer":
            inputs = [find_float_source(model, source) for source in node.args[:1] if isinstance(source, Node)]
        supported = len(inputs) == 2 if kind in {"add", "multiply"} else bool(inputs)
        operations.append(
            GraphOperation(
                name=node.name, kind=kind if supported else "other", module=module_name(node),
                inputs=tuple(source.name for source in inputs), output=node.name,
            )
        )  # fmt: skip
    return operations


def restrict_to_placement(model: GraphModule, chosen: Placement) -> GraphModule:
    """Return a copy of a fake-quantized graph that quantizes only what `chosen` says, with the same weights and ranges.

    Args:
        model: as `pt2e.prepare` and training left it.
        chosen: a placement with more in float than the graph's own.
    """
    ops = list_operations(model)
    edges = quantized_edges(ops, resolve(ops, chosen))
    layers = {op.name for op in ops if op.kind == "layer" and chosen.quantizes(op.module)}
    copied = copy.deepcopy(model)
    for node in list(copied.graph.nodes):
        if not is_fake_quantize(copied, node):
            continue
        value = find_float_source(copied, node)
        for user in list(node.users):
            stays = user.name in layers if value.op == "get_attr" else (value.name, user.name) in edges
            if not stays and not is_fake_quantize(copied, user):
                user.replace_input_with(node, value)
    copied.graph.eliminate_dead_code()
    copied.delete_all_unused_submodules()
    copied.recompile()
    return copied


def lower(model: GraphModule) -> GraphModule:
    """Rewrite a graph in fewer operations that the runtimes have in int8; change `model` and return it.

    In-place operations become their plain forms, SiLU and hard-swish a gate times their input, chunks slices.
    """
    graph = model.graph
    for node in list(graph.nodes):
        if node.target in OUT_OF_PLACE and not _input_is_read_later(node):
            node.target = OUT_OF_PLACE[node.target]
        if node.target in GATE_TARGETS:
            with graph.inserting_before(node):
                gate = graph.call_function(GATE_TARGETS[node.target], (node.args[0],))
                product = graph.call_function(ATEN.mul.Tensor, (node.args[0], gate))
            gate.meta, product.meta = dict(node.meta), dict(node.meta)
            node.replace_all_uses_with(product)
            graph.erase_node(node)
        elif node.target == ATEN.chunk.default and all(user.target is operator.getitem for user in node.users):
            _chunk_to_slices(graph, node)
    model.recompile()
    return model


def _input_is_read_later(node: Node) -> bool:
    """Return whether the input of an in-place operation is read again later, so that it must really change."""
    return any(user > node for user in cast(Node, node.args[0]).users if user is not node)


def _chunk_to_slices(graph: Graph, node: Node) -> None:
    source, count, dimension = cast(Node, node.args[0]), cast(int, node.args[1]), cast(int, (*node.args, 0)[2])
    length = source.meta["val"].shape[dimension]
    size = -(-length // count)
    for user in list(node.users):
        start = cast(int, user.args[1]) * size
        with graph.inserting_before(user):
            part = graph.call_function(ATEN.slice.Tensor, (source, dimension, start, min(start + size, length)))
        part.meta = dict(user.meta)
        user.replace_all_uses_with(part)
        graph.erase_node(user)
    graph.erase_node(node)


def _is_float(node: Node) -> bool:
    value = node.meta.get("val")
    return isinstance(value, Tensor) and value.is_floating_point()
