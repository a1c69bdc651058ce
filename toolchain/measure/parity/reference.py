"""A Q/DQ graph evaluated in float32 with torch's arithmetic, node by node, with no fusion: what the runtimes are held against.

ONNX's own reference evaluator does it, with two operations as torch has them: convolutions, which it would be slow
at, and rounding, where torch multiplies by the inverse of the scale and ONNX divides.
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
    """A convolution by torch; a class is named after its operation, as the evaluator wants it."""

    def _run(self, image: np.ndarray, weight: np.ndarray, bias: np.ndarray | None = None, **given: Any) -> Any:
        pads = given["pads"] or [0, 0, 0, 0]
        half = len(pads) // 2
        around = [pad for axis in reversed(range(half)) for pad in (pads[axis], pads[axis + half])]
        result = torch.conv2d(
            F.pad(_tensor(image), around),
            _tensor(weight),
            None if bias is None else _tensor(bias),
            stride=given["strides"] or 1,
            dilation=given["dilations"] or 1,
            groups=given["group"] or 1,
        )
        return (result.numpy(),)


class QuantizeLinear(OpRun):
    """Rounding of one tensor with one scale, as `torch.fake_quantize_per_tensor_affine` does it."""

    def _run(self, value: np.ndarray, scale: np.ndarray, zero: np.ndarray, **_: Any) -> Any:
        limits = np.iinfo(zero.dtype)
        inverse = np.float32(1.0 / float(scale.item()))
        steps = np.rint(value * inverse) + np.float32(zero.item())
        return (np.clip(steps, limits.min, limits.max).astype(zero.dtype),)


def _tensor(array: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(np.array(array))  # the evaluator's arrays may be read-only


def evaluate(model: ModelProto, images: np.ndarray) -> Mapping[str, np.ndarray]:
    """Runs images one by one.

    Args:
        model: a graph of static batch 1, such as `taps.tapped` gives.
        images: float32 [images, 3, height, width].

    Returns:
        every graph output by name, [images, ...].

    Raises:
        ToolchainError: the graph has an operation that the evaluator does not know.
    """
    names = [output.name for output in model.graph.output]
    try:
        evaluator = ReferenceEvaluator(model, new_ops=[Conv, QuantizeLinear])
        with torch.no_grad():
            rows: Sequence[Any] = [evaluator.run(None, {model.graph.input[0].name: image[None]}) for image in images]
    except Exception as reason:  # whatever an operation raises
        raise ToolchainError(
            f"the exported graph cannot be evaluated outside a runtime: {first_line(reason)}"
        ) from reason
    return {name: np.concatenate([np.asarray(row[i]) for row in rows]) for i, name in enumerate(names)}
