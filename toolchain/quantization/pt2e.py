"""The target's scheme and a Placement, as a PT2E Quantizer: what is fake-quantized, and how it becomes Q/DQ.

Works on an exported graph in inference form with batch norm folded into the convolution before any range is
observed. What is trained is then exactly what is shipped, and no batch statistics can drift. What is rounded is
decided in `placement`.
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
from torchao.quantization.pt2e import MovingAverageMinMaxObserver
from torchao.quantization.pt2e.fake_quantize import FakeQuantize, FakeQuantizeBase
from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e
from torchao.quantization.pt2e.quantizer import (
    QuantizationAnnotation,
    QuantizationSpec,
    Quantizer,
    SharedQuantizationSpec,
)

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

SMALLEST_SCALE = 1e-6  # a dead channel's; keeps the int32 bias, in steps of input scale x weight scale, in range


class WeightFakeQuantize(FakeQuantizeBase):  # type: ignore[misc]  # torchao is untyped
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


class ActivationFakeQuantize(FakeQuantize):  # type: ignore[misc]
    """A moving average of an activation's minimum and maximum, and rounding between them."""

    def forward(self, x: Tensor) -> Tensor:
        if self.observer_enabled[0] == 1:
            # in the order in which they lie in memory: the observer would copy images in channels_last first
            last = x.ndim == 4 and x.is_contiguous(memory_format=torch.channels_last)
            self.activation_post_process(x.detach().permute(0, 2, 3, 1) if last else x.detach())
            self.take_range()
        if self.fake_quant_enabled[0] == 0:
            return x
        return fake_quantize.per_tensor(x, self.scale, self.zero_point, self.quant_min, self.quant_max)

    def take_range(self) -> None:
        """Scale and zero point from what was observed; none where nothing was."""
        observer = self.activation_post_process
        if bool(observer.min_val <= observer.max_val):  # infinite the other way round before anything was seen
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
    """Annotates what a placement covers with the types of `scheme`."""

    def __init__(self, chosen: Placement, scheme: QuantScheme) -> None:
        super().__init__()
        self.placement = chosen
        self.activation = _activation_spec(scheme)
        self.weight = _weight_spec(scheme)
        self.planned: list[str] = []

    def annotate(self, model: GraphModule) -> GraphModule:
        nodes = {node.name: node for node in model.graph.nodes}
        found = fx_graph.list_operations(model)
        self.planned = list(placement.quantized_layers(found, self.placement))
        for name, rounding in placement.resolve(found, self.placement).items():
            node = nodes[name]
            inputs: dict[Node, Any] = {nodes[value]: self.activation for value in rounding.inputs}
            output: Any = self.activation if rounding.output else None
            if rounding.shared_scale:
                first = nodes[rounding.inputs[0]]
                shared = SharedQuantizationSpec((first, node))
                inputs = {**dict.fromkeys(inputs, shared), first: self.activation}
                output = shared if rounding.output else None
            if node.target in fx_graph.LAYER_TARGETS:
                inputs[node.args[1]] = self.weight
            _annotate(node, inputs, output)
        return model

    def validate(self, model: GraphModule) -> None:
        """Every combination this quantizer writes is valid by construction."""


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
    _check_inputs(model)
    model = copy.deepcopy(model)  # an exported graph shares its parameters with the module it came from
    model = model.to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]
    example = image.expand(2, -1, -1, -1).clone()
    try:
        with contextlib.redirect_stderr(io.StringIO()), contextlib.redirect_stdout(io.StringIO()):  # pages of graph
            exported = torch.export.export(
                model.eval(), (example,), dynamic_shapes=({0: Dim("batch", min=1, max=4096)},)
            )
    except Exception as reason:  # torch.export has no common base class for what it refuses
        raise ToolchainError(
            f"the model cannot be exported for quantization: {first_line(reason)}{_line(reason)}; "
            "models whose control flow depends on the data are not supported"
        ) from reason
    quantizer = PlacementQuantizer(chosen or placement.ALL_FLOAT, scheme)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        prepared = prepare_pt2e(fx_graph.lower(exported.module()), quantizer)
    return prepared, tuple(quantizer.planned)


def _check_inputs(model: nn.Module) -> None:
    needed = [
        name
        for name, parameter in inspect.signature(model.forward).parameters.items()
        if parameter.default is parameter.empty
        and parameter.kind in {parameter.POSITIONAL_ONLY, parameter.POSITIONAL_OR_KEYWORD}
    ]
    if len(needed) != 1:
        raise ToolchainError(
            f"the model takes {len(needed)} inputs ({', '.join(needed)}); one image is what can be exported: "
            "wrap it in a module that has the others inside"
        )


def _line(reason: BaseException) -> str:
    """Where in the user's code torch stopped, as far as it says: ` (model.py, line 7: if y.sum() > 0:)`."""
    found = re.findall(r'File "([^"]+)", line (\d+), in \w+\n\s+(.+)', str(reason))
    if not found:
        return ""
    file, number, code = found[-1]
    return f" ({Path(file).name}, line {number}: {code.strip()})"


def find_activation_quantizers(model: nn.Module) -> dict[str, ActivationFakeQuantize]:
    """The fake quantizations of activations, by name in the graph."""
    return {n: m for n, m in model.named_modules() if isinstance(m, ActivationFakeQuantize)}


def set_range(rounding: ActivationFakeQuantize, low: float, high: float) -> None:
    """Gives one fake quantization its range; it takes effect with the next `observe`."""
    observer = rounding.activation_post_process
    observer.min_val.copy_(torch.tensor(low))
    observer.max_val.copy_(torch.tensor(high))


def configure_fake_quantize(model: nn.Module, *, ranges: bool, rounding: bool) -> None:
    """Switches the observation of activation ranges and the rounding itself on or off."""
    for module in model.modules():
        if isinstance(module, FakeQuantizeBase):
            module.enable_observer(ranges)
            module.enable_fake_quant(rounding)
            if not ranges and isinstance(module, ActivationFakeQuantize):
                module.take_range()  # what conversion will use; averaged weights bring others


def convert(prepared: GraphModule, image: Tensor) -> GraphModule:
    """Fake quantization to real Q/DQ with int8 weights, ready for `torch.onnx.export`.

    `image` is run once so that the weight scales are those of the last weights.
    """
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        prepared = copy.deepcopy(prepared)
        configure_fake_quantize(prepared, ranges=False, rounding=True)
        prepared(image)
        return cast(GraphModule, convert_pt2e(prepared))
