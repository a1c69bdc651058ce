"""Can `torch.export` trace the model, and can it be written as ONNX: quantization, training and every target start there."""

from dataclasses import dataclass

import onnx_ir

from toolchain.config.target import QuantScheme
from toolchain.core.errors import ToolchainError, first_line
from toolchain.export import to_onnx
from toolchain.quantization import pt2e
from toolchain.selection.check_model import user_lines
from toolchain.selection.check_model.finding import Finding
from toolchain.selection.check_model.subject import Subject

TRACE_ADVICE = (
    "Rewrite this line without Python control flow on values: torch.where in place of if, no .item(), no numpy, no batch size "
    "written into a shape."
)


@dataclass(frozen=True, kw_only=True)
class TracedModel:
    """The model as a float ONNX graph with batch norm folded, where it could be traced."""

    graph: onnx_ir.Model | None
    findings: tuple[Finding, ...]


def trace(subject: Subject, scheme: QuantScheme) -> TracedModel:
    """Trace the model for any batch size and export it to ONNX for one image.

    Args:
        subject: a model that runs.
        scheme: integer types of the target.
    """
    try:
        prepared, _ = pt2e.prepare(subject.model, subject.image, None, scheme)
    except ToolchainError as reason:
        cause = reason.__cause__ or reason
        finding = Finding(
            check="traces", status="blocks", line=user_lines.find_line(cause), action=TRACE_ADVICE,
            text=f"torch.export cannot trace it: {first_line(cause)}.",
        )  # fmt: skip
        return TracedModel(graph=None, findings=(finding,))
    except Exception as reason:  # torchao's own errors
        finding = Finding(
            check="traces", status="blocks", action="Report the model's structure; export it to ONNX by other means meanwhile.",
            text=f"It cannot be prepared for quantization: {first_line(reason)}.", line=user_lines.find_line(reason),
        )  # fmt: skip
        return TracedModel(graph=None, findings=(finding,))
    traced = Finding(check="traces", status="pass", text="torch.export traces it for any batch size.")
    try:
        graph = to_onnx.export_graph(prepared, subject.image)
    except ToolchainError as reason:
        finding = Finding(
            check="onnx", status="blocks", text=f"{reason}.", line=user_lines.find_line(reason.__cause__ or reason),
            action="Replace the operation that it names by one that ONNX has.",
        )  # fmt: skip
        return TracedModel(graph=None, findings=(traced, finding))
    operations = len(graph.graph)
    exported = Finding(check="onnx", status="pass", text=f"It exports to ONNX: {operations} operations.")
    return TracedModel(graph=graph, findings=(traced, exported))
