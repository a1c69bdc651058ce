"""A torch module as an ONNX graph: static batch 1, clean, nothing of this machine inside."""

import warnings
from pathlib import Path

import onnx_ir
import torch
from torch import Tensor, nn

from toolchain.core.errors import ToolchainError, first_line
from toolchain.export.passes import cleanup

OPSET = 20  # the lowest that torch's exporter writes Q/DQ in without a conversion


def export_file(module: nn.Module, image: Tensor, path: Path) -> None:
    """Writes a module as one clean ONNX file with input `input` and output `logits`; its memory layout may change.

    Raises:
        ToolchainError: torch cannot translate the model; names its reason.
    """
    cleanup.save(cleanup.clean(export_graph(module, image)), path)


def export_graph(module: nn.Module, image: Tensor) -> onnx_ir.Model:
    """A module as an ONNX graph with torch's comments, which name the module that each node came from.

    Raises:
        ToolchainError: torch cannot translate the model; names its reason.
    """
    # trained channels last, its pooling would be exported as pointer arithmetic that no runtime fuses
    module = module.to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            program = torch.onnx.export(
                module, (image.contiguous(),), dynamo=True, opset_version=OPSET, verbose=False,
                input_names=["input"], output_names=["logits"],
            )  # fmt: skip
    except Exception as reason:  # the exporter's errors share no base class
        raise ToolchainError(f"the model cannot be exported to ONNX: {first_line(_root(reason))}") from reason
    assert program is not None
    return program.model


def _root(reason: BaseException) -> BaseException:
    """The innermost cause, which names the operation; the outer ones are advice to torch's developers."""
    while reason.__cause__ is not None:
        reason = reason.__cause__
    return reason


def read_output_step(path: Path) -> float | None:
    """Scale of the Q/DQ pair in front of the logits; None where they come in float."""
    graph = onnx_ir.load(path).graph
    last = graph.outputs[0].producer()
    if (
        last is None
        or last.op_type != "DequantizeLinear"
        or last.inputs[1] is None
        or last.inputs[1].const_value is None
    ):
        return None
    return float(last.inputs[1].const_value.numpy())
