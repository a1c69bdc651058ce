"""The target's scheme and a Placement, as a PT2E Quantizer: what is fake-quantized, and how it becomes Q/DQ.

Works on an exported graph in inference form with batch norm folded into the convolution before any range is
observed. What is trained is then exactly what is shipped, and no batch statistics can drift. A convolution or
linear layer and the activation behind it are one unit without a Q between them; both inputs of an addition are
quantized; max pooling and reshaping keep their input's scale, so that the runtimes can run them in integers too.
"""

import copy
import logging
import warnings
from collections.abc import Iterable
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.export import Dim
from torch.fx import GraphModule, Node

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

from toolchain.errors import ToolchainError, brief  # noqa: E402  behind the import above
from toolchain.values import Placement, QuantScheme  # noqa: E402

ATEN = torch.ops.aten
WEIGHTED = {ATEN.conv2d.default, ATEN.linear.default}
RECTIFIERS = {
    ATEN.relu.default, ATEN.relu_.default, ATEN.relu6.default, ATEN.hardtanh.default, ATEN.hardtanh_.default,
}  # fmt: skip
ADDITIONS = {ATEN.add.Tensor, ATEN.add_.Tensor}
CONCATENATIONS = {ATEN.cat.default}
AVERAGES = {ATEN.avg_pool2d.default, ATEN.adaptive_avg_pool2d.default, ATEN.mean.dim}
SCALE_KEEPING = {
    ATEN.pad.default, ATEN.constant_pad_nd.default,
    ATEN.max_pool2d.default, ATEN.view.default, ATEN.reshape.default, ATEN.flatten.using_ints, ATEN.dropout.default,
}  # fmt: skip
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
    """Annotates what `placement` covers with the types of `scheme`."""

    def __init__(self, placement: Placement, scheme: QuantScheme) -> None:
        super().__init__()
        self.placement = placement
        self.activation = _activation_spec(scheme)
        self.weight = _weight_spec(scheme)
        self.planned: list[str] = []

    def annotate(self, model: GraphModule) -> GraphModule:
        for node in model.graph.nodes:
            if node.op != "call_function" or not self.placement.covers(module_of(node)):
                continue
            if node.target in WEIGHTED and isinstance(node.args[0], Node):
                self.planned.append(module_of(node))
                self._unit(node, {node.args[0]: self.activation, node.args[1]: self.weight})
            elif node.target in ADDITIONS:
                terms = [term for term in node.args[:2] if isinstance(term, Node)]
                if len(terms) == 2 and all(_is_float(term) for term in terms):
                    self._unit(node, dict.fromkeys(terms, self.activation))
            elif node.target in CONCATENATIONS:
                self._concatenation(node)
            elif node.target in AVERAGES and isinstance(node.args[0], Node):
                # an average has a smaller range than its input; one shared scale would be too coarse for it, and
                # observing both would clip the input
                _annotate(node, {node.args[0]: self.activation}, self.activation)
            elif node.target in SCALE_KEEPING and isinstance(node.args[0], Node) and _is_float(node.args[0]):
                shared = SharedQuantizationSpec((node.args[0], node))
                _annotate(node, {node.args[0]: self.activation}, shared)
        return model

    def validate(self, model: GraphModule) -> None:
        """Every combination this quantizer writes is valid by construction."""

    def _unit(self, node: Node, inputs: dict[Node, Any]) -> None:
        users = list(node.users)
        rectifier = users[0] if len(users) == 1 and users[0].target in RECTIFIERS else None
        _annotate(node, inputs, None if rectifier else self.activation)
        if rectifier:
            _annotate(rectifier, {}, self.activation)

    def _concatenation(self, node: Node) -> None:
        parts = [part for part in cast(Iterable[object], node.args[0]) if isinstance(part, Node)]
        if parts:
            shared = SharedQuantizationSpec((parts[0], node))
            inputs: dict[Node, Any] = dict.fromkeys(parts, shared)
            inputs[parts[0]] = self.activation
            _annotate(node, inputs, shared)


def _is_float(node: Node) -> bool:
    value = node.meta.get("val")
    return isinstance(value, Tensor) and value.is_floating_point()


def _annotate(node: Node, inputs: dict[Node, Any], output: object) -> None:
    node.meta["quantization_annotation"] = QuantizationAnnotation(
        input_qspec_map=inputs, output_qspec=cast(Any, output), _annotated=True
    )


def prepare(
    model: nn.Module, image: Tensor, placement: Placement, scheme: QuantScheme
) -> tuple[GraphModule, tuple[str, ...]]:
    """Folds batch norm and inserts fake quantization; the model given is left as it was.

    Args:
        model: float model; exported in inference mode.
        image: one example input, float32 [1, 3, height, width].
        placement: what to quantize.
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
    quantizer = PlacementQuantizer(placement, scheme)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        prepared = prepare_pt2e(exported.module(), quantizer)
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
