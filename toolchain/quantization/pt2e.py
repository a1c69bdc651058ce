"""Fake quantization through torchao's PT2E: a Quantizer for the target's scheme and a placement, and conversion to Q/DQ.

It works on an exported graph in inference form, with batch norm folded into the convolutions before any range is
observed. The trained graph is then exactly the shipped one, and no batch statistics can drift. `placement` decides what
is quantized.
"""

import contextlib
import copy
import inspect
import io
import logging
import re
import warnings
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.export import Dim
from torch.fx import GraphModule, Node

from toolchain.config.target import QuantScheme
from toolchain.core.errors import ToolchainError, first_line
from toolchain.quantization import fake_quantize, fx_graph, placement
from toolchain.quantization.placement import Placement

logging.disable(logging.WARNING)  # torchao tries CUDA kernels on import and complains that there are none
with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    from torchao.quantization.pt2e import MovingAverageMinMaxObserver
    from torchao.quantization.pt2e.fake_quantize import FakeQuantize, FakeQuantizeBase
    from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e
    from torchao.quantization.pt2e.quantizer import (
        QuantizationAnnotation,
        QuantizationSpec,
        Quantizer,
        SharedQuantizationSpec,
    )

logging.disable(logging.NOTSET)

MIN_SCALE = 1e-6  # of a dead channel; keeps the int32 bias, in steps of input scale x weight scale, in range


class WeightFakeQuantize(FakeQuantizeBase):  # type: ignore[misc]  # torchao is untyped
    """Symmetric quantization of a weight per output channel, with the range of the current weight.

    A moving average of weight ranges makes the converted model differ from the fake-quantized one
    (decision 4 of the design: 0.8 points on a real dataset); with the current range they are equal.
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
        max_abs = x.detach().abs().amax(dim=tuple(range(1, x.ndim)))
        self.scale = (max_abs / self.quant_max).clamp_min(MIN_SCALE)
        if self.fake_quant_enabled[0] != 1:
            return x
        zeros = torch.zeros_like(self.scale, dtype=torch.int32)
        return torch.fake_quantize_per_channel_affine(x, self.scale, zeros, 0, self.quant_min, self.quant_max)

    def calculate_qparams(self, **_: object) -> tuple[Tensor, Tensor]:
        return self.scale, torch.zeros_like(self.scale, dtype=torch.int64)


class ActivationFakeQuantize(FakeQuantize):  # type: ignore[misc]
    """Quantization of an activation within a moving average of its minimum and maximum."""

    def forward(self, x: Tensor) -> Tensor:
        if self.observer_enabled[0] == 1:
            # pass values in memory order: the observer would first copy an activation in channels_last
            channels_last = x.ndim == 4 and x.is_contiguous(memory_format=torch.channels_last)
            self.activation_post_process(x.detach().permute(0, 2, 3, 1) if channels_last else x.detach())
            self.update_scale()
        if self.fake_quant_enabled[0] == 0:
            return x
        return fake_quantize.per_tensor(x, self.scale, self.zero_point, self.quant_min, self.quant_max)

    def update_scale(self) -> None:
        """Set scale and zero point from the observed range; keep them where nothing was observed."""
        observer = self.activation_post_process
        if bool(observer.min_val <= observer.max_val):  # before the first observation they are inf and -inf
            scale, zero_point = self.calculate_qparams()
            self.scale.copy_(scale)
            self.zero_point.copy_(zero_point)


def _activation_spec(scheme: QuantScheme) -> QuantizationSpec:
    dtype, low, high = (torch.uint8, 0, 255) if scheme.activations == "uint8" else (torch.int8, -128, 127)
    observer = ActivationFakeQuantize.with_args(
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
        observer_or_fake_quant_ctr=WeightFakeQuantize.with_args(levels=levels),
        quant_min=-levels,
        quant_max=levels,
        qscheme=torch.per_channel_symmetric,
        ch_axis=0,
    )


class PlacementQuantizer(Quantizer):  # type: ignore[misc]
    """Annotates the operations of a placement with the integer types of a scheme."""

    def __init__(self, chosen: Placement, scheme: QuantScheme) -> None:
        super().__init__()
        self.placement = chosen
        self.activation_spec = _activation_spec(scheme)
        self.weight_spec = _weight_spec(scheme)
        self.planned_layers: list[str] = []

    def annotate(self, model: GraphModule) -> GraphModule:
        nodes = {node.name: node for node in model.graph.nodes}
        operations = fx_graph.list_operations(model)
        self.planned_layers = list(placement.quantized_layers(operations, self.placement))
        for name, quantization in placement.resolve(operations, self.placement).items():
            node = nodes[name]
            inputs: dict[Node, Any] = {nodes[value]: self.activation_spec for value in quantization.inputs}
            output: Any = self.activation_spec if quantization.output else None
            if quantization.shared_scale:
                first = nodes[quantization.inputs[0]]
                shared = SharedQuantizationSpec((first, node))
                inputs = {**dict.fromkeys(inputs, shared), first: self.activation_spec}
                output = shared if quantization.output else None
            if node.target in fx_graph.LAYER_TARGETS:
                inputs[node.args[1]] = self.weight_spec
            _annotate(node, inputs, output)
        return model

    def validate(self, model: GraphModule) -> None:
        """Do nothing: every annotation of this quantizer is valid by construction."""


def _annotate(node: Node, inputs: dict[Node, Any], output: object) -> None:
    node.meta["quantization_annotation"] = QuantizationAnnotation(
        input_qspec_map=inputs, output_qspec=cast(Any, output), _annotated=True
    )


def prepare(
    model: nn.Module, image: Tensor, chosen: Placement | None, scheme: QuantScheme
) -> tuple[GraphModule, tuple[str, ...]]:
    """Return the model as a graph with batch norm folded and fake quantization inserted; the model is not changed.

    Args:
        model: float model; exported in inference mode.
        image: one example input, float32 [1, 3, height, width].
        chosen: what to quantize; None leaves everything in float, for candidates that are only timed.
        scheme: integer types.

    Returns:
        the fake-quantized, trainable graph (any batch size), and the convolution and linear modules that are quantized.

    Raises:
        ToolchainError: the model takes other inputs than one image, or has control flow or an operation that `torch.export`
            cannot follow.
    """
    _check_inputs(model)
    model = copy.deepcopy(model)  # an exported graph shares its parameters with the module it came from
    model = model.to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]
    example = image.expand(2, -1, -1, -1).clone()
    try:
        with (
            contextlib.redirect_stderr(io.StringIO()),
            contextlib.redirect_stdout(io.StringIO()),
        ):  # torch prints the graph there
            exported = torch.export.export(
                model.eval(), (example,), dynamic_shapes=({0: Dim("batch", min=1, max=4096)},)
            )
    except Exception as reason:  # torch.export's errors share no base class
        raise ToolchainError(
            f"the model cannot be exported for quantization: {first_line(reason)}{_source_line(reason)}; "
            "models whose control flow depends on the data are not supported"
        ) from reason
    quantizer = PlacementQuantizer(chosen or placement.ALL_FLOAT, scheme)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        prepared = prepare_pt2e(fx_graph.lower(exported.module()), quantizer)
    return prepared, tuple(quantizer.planned_layers)


def _check_inputs(model: nn.Module) -> None:
    required = [
        name
        for name, parameter in inspect.signature(model.forward).parameters.items()
        if parameter.default is parameter.empty
        and parameter.kind in {parameter.POSITIONAL_ONLY, parameter.POSITIONAL_OR_KEYWORD}
    ]
    if len(required) != 1:
        raise ToolchainError(
            f"the model takes {len(required)} inputs ({', '.join(required)}); it must take one, the "
            "image: wrap it in a module that supplies the others"
        )


def _source_line(reason: BaseException) -> str:
    """Return where in the user's code torch stopped, if it says: ` (model.py, line 7: if y.sum() > 0:)`."""
    frames = re.findall(r'File "([^"]+)", line (\d+), in \w+\n\s+(.+)', str(reason))
    if not frames:
        return ""
    file, number, code = frames[-1]
    return f" ({Path(file).name}, line {number}: {code.strip()})"


def find_activation_quantizers(model: nn.Module) -> dict[str, ActivationFakeQuantize]:
    """Return the fake quantizations of activations by their names in the graph."""
    return {name: module for name, module in model.named_modules() if isinstance(module, ActivationFakeQuantize)}


def set_range(quantizer: ActivationFakeQuantize, low: float, high: float) -> None:
    """Set the range of one fake quantization; it takes effect with the next `configure_fake_quantize(ranges=False)`."""
    observer = quantizer.activation_post_process
    observer.min_val.copy_(torch.tensor(low))
    observer.max_val.copy_(torch.tensor(high))


def configure_fake_quantize(model: nn.Module, *, ranges: bool, rounding: bool) -> None:
    """Switch the observation of activation ranges and the rounding itself on or off."""
    for module in model.modules():
        if isinstance(module, FakeQuantizeBase):
            module.enable_observer(ranges)
            module.enable_fake_quant(rounding)
            if not ranges and isinstance(module, ActivationFakeQuantize):
                module.update_scale()  # averaged weights bring other ranges, and conversion uses those


def convert(prepared: GraphModule, image: Tensor) -> GraphModule:
    """Return a copy with real Q/DQ and int8 weights in place of fake quantization, ready for `torch.onnx.export`.

    Args:
        prepared: as `prepare` and training left it; not changed.
        image: one input, float32 [n, 3, height, width]; run once so that the weight scales follow the last weights.
    """
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        prepared = copy.deepcopy(prepared)
        configure_fake_quantize(prepared, ranges=False, rounding=True)
        prepared(image)
        return cast(GraphModule, convert_pt2e(prepared))
