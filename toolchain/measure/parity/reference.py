"""The parity reference: a Q/DQ graph evaluated in float32 with torch's arithmetic, node by node and without fusion.

ONNX's reference evaluator runs the graph, with two operations replaced by torch's: convolution, in which the evaluator is
slow, and rounding, where torch multiplies by the inverse of the scale and ONNX divides by the scale.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from onnx import ModelProto
from onnx.reference import ReferenceEvaluator
from onnx.reference.op_run import OpRun
from torch.nn import functional as F

from toolchain.core.errors import ToolchainError, first_line


class Conv(OpRun):
    """A convolution computed by torch. The evaluator finds an operation by the name of its class."""

    def _run(self, image: np.ndarray, weight: np.ndarray, bias: np.ndarray | None = None, **attributes: Any) -> Any:
        pads = attributes["pads"] or [0, 0, 0, 0]
        axes = len(pads) // 2
        # ONNX lists the start of every axis, then the end of every axis; torch lists pairs, from the last axis on
        torch_pads = [pad for axis in reversed(range(axes)) for pad in (pads[axis], pads[axis + axes])]
        result = torch.conv2d(
            F.pad(_to_tensor(image), torch_pads),
            _to_tensor(weight),
            None if bias is None else _to_tensor(bias),
            stride=attributes["strides"] or 1,
            dilation=attributes["dilations"] or 1,
            groups=attributes["group"] or 1,
        )
        return (result.numpy(),)


class QuantizeLinear(OpRun):
    """Quantization of a tensor with one scale, as `torch.fake_quantize_per_tensor_affine` computes it."""

    def _run(self, value: np.ndarray, scale: np.ndarray, zero_point: np.ndarray, **_: Any) -> Any:
        limits = np.iinfo(zero_point.dtype)
        inverse = np.float32(1.0 / float(scale.item()))
        steps = np.rint(value * inverse) + np.float32(zero_point.item())
        return (np.clip(steps, limits.min, limits.max).astype(zero_point.dtype),)


def _to_tensor(array: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(np.array(array))  # a copy, because the evaluator's arrays may be read-only


def evaluate(model: ModelProto, images: np.ndarray) -> Mapping[str, np.ndarray]:
    """Run images through a graph, one by one.

    Args:
        model: a graph of static batch 1, such as `quantized_tensors.add_outputs` returns.
        images: float32 [images, 3, height, width].

    Returns:
        every graph output by name, [images, ...].

    Raises:
        ToolchainError: the evaluator does not run one of the graph's operations.
    """
    names = [output.name for output in model.graph.output]
    try:
        evaluator = ReferenceEvaluator(model, new_ops=[Conv, QuantizeLinear])
        with torch.no_grad():
            rows: Sequence[Any] = [evaluator.run(None, {model.graph.input[0].name: image[None]}) for image in images]
    except Exception as reason:  # each operation raises its own types
        raise ToolchainError(
            f"the exported graph cannot be evaluated in ONNX's reference evaluator: {first_line(reason)}"
        ) from reason
    return {name: np.concatenate([np.asarray(row[i]) for row in rows]) for i, name in enumerate(names)}
