"""Export of a torch module to ONNX: static batch 1, cleaned, with nothing of the build machine inside."""

import warnings
from pathlib import Path

import onnx_ir
import torch
from torch import Tensor, nn

from toolchain.core.errors import ToolchainError, first_line
from toolchain.export import onnx_graph
from toolchain.export.passes import cleanup

OPSET = 20  # the lowest that torch's exporter writes Q/DQ in without converting the graph


def export_file(module: nn.Module, image: Tensor, path: Path) -> None:
    """Write a module as one clean ONNX file with input `input` and output `logits`.

    Args:
        module: in inference form; its memory format becomes contiguous.
        image: one example input, float32 [1, 3, height, width].
        path: of the file.

    Raises:
        ToolchainError: torch cannot translate the model; the message names its reason.
    """
    onnx_graph.save_model(cleanup.clean(export_graph(module, image)), path)


def export_graph(module: nn.Module, image: Tensor) -> onnx_ir.Model:
    """Return a module as an ONNX graph with torch's metadata, which names the module that each node came from.

    Args:
        module: in inference form; its memory format becomes contiguous.
        image: one example input, float32 [1, 3, height, width].

    Raises:
        ToolchainError: torch cannot translate the model; the message names its reason.
    """
    # in channels_last, pooling would be exported as index arithmetic that no runtime fuses
    module = module.to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            program = torch.onnx.export(
                module, (image.contiguous(),), dynamo=True, opset_version=OPSET, verbose=False,
                input_names=["input"], output_names=["logits"],
            )  # fmt: skip
    except Exception as reason:  # the exporter's errors share no base class
        raise ToolchainError(f"the model cannot be exported to ONNX: {first_line(_root_cause(reason))}") from reason
    assert program is not None
    return program.model


def _root_cause(reason: BaseException) -> BaseException:
    """Return the innermost cause, which names the operation; the outer ones advise torch's developers."""
    while reason.__cause__ is not None:
        reason = reason.__cause__
    return reason
