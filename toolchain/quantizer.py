"""The target's scheme and a Placement, as a PT2E Quantizer: what is fake-quantized, and how it becomes Q/DQ.

Works on an exported graph in inference form with batch norm folded into the convolution before any range is
observed. What is trained is then exactly what is shipped, and no batch statistics can drift. What is rounded is
decided in `placement`.
"""

import copy
import logging
import operator
import warnings
from collections.abc import Mapping
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.export import Dim
from torch.fx import Graph, GraphModule, Node

logging.disable(logging.WARNING)  # torchao tries CUDA kernels on import and complains that there are none
with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    from torchao.quantization.pt2e import FusedMovingAvgObsFakeQuantize, MovingAverageMinMaxObserver
    from torchao.quantization.pt2e.fake_quantize import FakeQuantizeBase
    from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e
    from torchao.quantization.pt2e.quantizer import (
        QuantizationAnnotation,
        QuantizationSpec,
        Quantizer,
        SharedQuantizationSpec,
    )

logging.disable(logging.NOTSET)

from toolchain import placement  # noqa: E402  behind the import above
from toolchain.errors import ToolchainError, brief  # noqa: E402
from toolchain.placement import Kind, Op  # noqa: E402
from toolchain.values import Placement, QuantScheme  # noqa: E402

ATEN = torch.ops.aten
KINDS: Mapping[Any, Kind] = {
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
LAYERS = {target for target, kind in KINDS.items() if kind == "layer"}
GATES = {ATEN.silu.default: ATEN.sigmoid.default, ATEN.hardswish.default: ATEN.hardsigmoid.default}
NOTHING = Placement(float_modules=("",))
SMALLEST_SCALE = 1e-6  # a dead channel's; keeps the int32 bias, in steps of input scale x weight scale, in range


class CurrentWeightRange(FakeQuantizeBase):  # type: ignore[misc]  # torchao is untyped
    """Symmetric, per output channel, from the weight as it is now.

    A moving average of weight ranges makes the converted model differ from the fake-quantized one
    (decision 4 of the design: 0.8 points on a real set); with the current range they are equal.
    """

    scale: Tensor

    def __init__(self, levels: int, **_: object) -> None:
        super().__init__()
        self.dtype = torch.int8
        self.qscheme = torch.per_channel_symmetric
        self.quant_min, self.quant_max = -levels, levels
        self.ch_axis = 0
        self.is_dynamic = False
        self.register_buffer("scale", torch.ones(1), persistent=False)  # derived from the weight

    def forward(self, x: Tensor) -> Tensor:
        reach = x.detach().abs().amax(dim=tuple(range(1, x.ndim)))
        self.scale = (reach / self.quant_max).clamp_min(SMALLEST_SCALE)
        if self.fake_quant_enabled[0] != 1:
            return x
        zeros = torch.zeros_like(self.scale, dtype=torch.int32)
        return torch.fake_quantize_per_channel_affine(x, self.scale, zeros, 0, self.quant_min, self.quant_max)

    def calculate_qparams(self, **_: object) -> tuple[Tensor, Tensor]:
        return self.scale, torch.zeros_like(self.scale, dtype=torch.int64)


def _activation_spec(scheme: QuantScheme) -> QuantizationSpec:
    dtype, low, high = (torch.uint8, 0, 255) if scheme.activations == "uint8" else (torch.int8, -128, 127)
    observer = FusedMovingAvgObsFakeQuantize.with_args(
        observer=MovingAverageMinMaxObserver,
        averaging_constant=0.05,
        dtype=dtype,
        quant_min=low,
        quant_max=high,
        qscheme=torch.per_tensor_affine,
    )
    return QuantizationSpec(
        dtype=dtype,
        observer_or_fake_quant_ctr=observer,
        quant_min=low,
        quant_max=high,
        qscheme=torch.per_tensor_affine,
    )


def _weight_spec(scheme: QuantScheme) -> QuantizationSpec:
    levels = 2 ** (scheme.weight_bits - 1) - 1
    return QuantizationSpec(
        dtype=torch.int8,
        observer_or_fake_quant_ctr=CurrentWeightRange.with_args(levels=levels),
        quant_min=-levels,
        quant_max=levels,
        qscheme=torch.per_channel_symmetric,
        ch_axis=0,
    )


def module_of(node: Node) -> str:
    """Name of the innermost `nn.Module` that a graph node was traced from; "" for the model itself."""
    stack = node.meta.get("nn_module_stack") or {}
    path = next(reversed(stack.values()))[0] if stack else ""
    return str(path).removeprefix("L['self'].").removeprefix("L['self']")


class PlacementQuantizer(Quantizer):  # type: ignore[misc]
    """Annotates what a placement covers with the types of `scheme`."""

    def __init__(self, chosen: Placement, scheme: QuantScheme) -> None:
        super().__init__()
        self.placement = chosen
        self.activation = _activation_spec(scheme)
        self.weight = _weight_spec(scheme)
        self.planned: list[str] = []

    def annotate(self, model: GraphModule) -> GraphModule:
        nodes = {node.name: node for node in model.graph.nodes}
        found = operations(model)
        self.planned = list(placement.layers(found, self.placement))
        for name, rounding in placement.rounded(found, self.placement).items():
            node = nodes[name]
            inputs: dict[Node, Any] = {nodes[value]: self.activation for value in rounding.inputs}
            output: Any = self.activation if rounding.output else None
            if rounding.shared:
                first = nodes[rounding.inputs[0]]
                shared = SharedQuantizationSpec((first, node))
                inputs = {**dict.fromkeys(inputs, shared), first: self.activation}
                output = shared if rounding.output else None
            if node.target in LAYERS:
                inputs[node.args[1]] = self.weight
            _annotate(node, inputs, output)
        return model

    def validate(self, model: GraphModule) -> None:
        """Every combination this quantizer writes is valid by construction."""


def operations(model: GraphModule) -> list[Op]:
    """The graph as `placement` reads it."""
    found = []
    for node in model.graph.nodes:
        if node.op not in {"call_function", "output"}:
            continue
        kind = KINDS.get(node.target, "other")
        inputs = [
            part for part in node.all_input_nodes if part.op != "get_attr" and (_is_float(part) or kind == "other")
        ]
        if kind == "layer":
            inputs = [part for part in node.args[:1] if isinstance(part, Node)]
        whole = len(inputs) == 2 if kind in {"add", "multiply"} else bool(inputs)
        found.append(
            Op(
                name=node.name, kind=kind if whole else "other", module=module_of(node),
                inputs=tuple(part.name for part in inputs), output=node.name,
            )
        )  # fmt: skip
    return found


def lower(model: GraphModule) -> GraphModule:
    """Writes a graph in fewer operations, each of which a runtime has in integers; changes `model` and returns it.

    Operations in place become their plain forms, SiLU and hard-swish a gate times their input, chunks slices.
    """
    graph = model.graph
    for node in list(graph.nodes):
        if node.target in OUT_OF_PLACE and not _read_later(node):
            node.target = OUT_OF_PLACE[node.target]
        if node.target in GATES:
            with graph.inserting_before(node):
                gate = graph.call_function(GATES[node.target], (node.args[0],))
                product = graph.call_function(ATEN.mul.Tensor, (node.args[0], gate))
            gate.meta, product.meta = dict(node.meta), dict(node.meta)
            node.replace_all_uses_with(product)
            graph.erase_node(node)
        elif node.target == ATEN.chunk.default and all(user.target is operator.getitem for user in node.users):
            _slices(graph, node)
    model.recompile()
    return model


def _read_later(node: Node) -> bool:
    """Whether the input of an operation in place is read again behind it, and so must change."""
    return any(user > node for user in cast(Node, node.args[0]).users if user is not node)


def _slices(graph: Graph, node: Node) -> None:
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


def _annotate(node: Node, inputs: dict[Node, Any], output: object) -> None:
    node.meta["quantization_annotation"] = QuantizationAnnotation(
        input_qspec_map=inputs, output_qspec=cast(Any, output), _annotated=True
    )


def prepare(
    model: nn.Module, image: Tensor, chosen: Placement | None, scheme: QuantScheme
) -> tuple[GraphModule, tuple[str, ...]]:
    """Folds batch norm and inserts fake quantization; the model given is left as it was.

    Args:
        model: float model; exported in inference mode.
        image: one example input, float32 [1, 3, height, width].
        chosen: what to quantize; None leaves all in float, for candidates that are only timed.
        scheme: integer types.

    Returns:
        the fake-quantized, trainable graph (any batch size), and the planned convolution and linear modules.

    Raises:
        ToolchainError: the model has control flow or an operation that `torch.export` cannot follow.
    """
    model = copy.deepcopy(model)  # an exported graph shares its parameters with the module it came from
    model = model.to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]
    example = image.expand(2, -1, -1, -1).clone()
    try:
        exported = torch.export.export(model.eval(), (example,), dynamic_shapes=({0: Dim("batch", min=1, max=4096)},))
    except Exception as reason:  # torch.export has no common base class for what it refuses
        raise ToolchainError(
            f"the model cannot be exported for quantization: {brief(reason)}; "
            "models whose control flow depends on the data are not supported"
        ) from reason
    quantizer = PlacementQuantizer(chosen or NOTHING, scheme)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        prepared = prepare_pt2e(lower(exported.module()), quantizer)
    return prepared, tuple(quantizer.planned)


def observe(model: nn.Module, *, ranges: bool, rounding: bool) -> None:
    """Switches the observation of activation ranges and the rounding itself on or off."""
    for module in model.modules():
        if isinstance(module, FakeQuantizeBase):
            module.enable_observer(ranges)
            module.enable_fake_quant(rounding)
            if not ranges and isinstance(module, FusedMovingAvgObsFakeQuantize):
                scale, zero_point = (
                    module.calculate_qparams()
                )  # what conversion will use; averaged weights bring others
                module.scale.copy_(scale)
                module.zero_point.copy_(zero_point)


def convert(prepared: GraphModule, image: Tensor) -> GraphModule:
    """Fake quantization to real Q/DQ with int8 weights, ready for `torch.onnx.export`.

    `image` is run once so that the weight scales are those of the last weights.
    """
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        prepared = copy.deepcopy(prepared)
        observe(prepared, ranges=False, rounding=True)
        prepared(image)
        return cast(GraphModule, convert_pt2e(prepared))
