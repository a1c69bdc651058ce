"""Read an ONNX file that the user gave: say what it is if it is none, and what in it this toolchain cannot work with."""

import hashlib
from collections.abc import Sequence
from pathlib import Path

import onnx
import onnx.inliner

from toolchain.core import files
from toolchain.core.errors import ToolchainError, first_line
from toolchain.models import foreign_files

RUNTIME = "onnxruntime"  # that runs the user's file and what is compared with it, whatever the target's own
OLDEST_OPSET = 7  # onnx's converter has gaps below it
STANDARD_DOMAINS = ("", "ai.onnx")
QUANTIZED_OPS = {
    "QuantizeLinear", "DequantizeLinear", "DynamicQuantizeLinear", "QLinearConv", "QLinearMatMul", "ConvInteger",
    "MatMulInteger", "QGemm", "QLinearAdd", "QLinearConcat", "QLinearGlobalAveragePool", "MatMulNBits",
}  # fmt: skip
MAX_NAMED = 4  # operations or inputs in one message


def load(path: Path) -> tuple[onnx.ModelProto, str]:
    """Load and check an ONNX file, with the weights of a second file where it has one.

    Args:
        path: the file.

    Returns:
        the model, with its local functions inlined, and the SHA-256 of all its files.

    Raises:
        ToolchainError: there is no such file; it is something else, damaged, already quantized, in training mode, or has
            operations outside of the ONNX standard.
    """
    if not path.is_file():
        reason = "is a folder" if path.is_dir() else "does not exist"
        raise ToolchainError(f"the model {path} {reason}; give the ONNX file itself: --model net.onnx")
    if problem := foreign_files.explain_not_onnx(path, foreign_files.read_head(path)):
        raise problem
    model = _parse(path)
    external = _find_external_files(model, path)
    _check_operations(model, path)
    try:
        onnx.load_external_data_for_model(model, str(path.parent))
        model = onnx.inliner.inline_local_functions(model)
        onnx.checker.check_model(model)
    except Exception as reason:  # onnx's errors share no base class
        raise ToolchainError(
            f"{path} is not a valid ONNX model: {first_line(reason)}; `python -m onnx.checker` may say more: export it again"
        ) from reason
    return model, _hash_files([path, *external])


def opset(model: onnx.ModelProto) -> int:
    """Return the version of the standard operator set that a model uses."""
    return next((entry.version for entry in model.opset_import if entry.domain in STANDARD_DOMAINS), 0)


def _parse(path: Path) -> onnx.ModelProto:
    try:
        model = onnx.load(path, load_external_data=False)
    except Exception as reason:  # protobuf's errors
        raise ToolchainError(
            f"{path} is cut off or damaged: onnx cannot read it ({first_line(reason)}); copy or download it again"
        ) from reason
    if not model.graph.node or not model.graph.output:
        raise ToolchainError(f"{path} holds no graph with operations and an output; export the model again")
    newest, version = onnx.defs.onnx_opset_version(), opset(model)
    if not OLDEST_OPSET <= version <= newest:
        raise ToolchainError(
            f"{path} has ONNX operator set {version}; accepted are {OLDEST_OPSET} to {newest}: export it again with another "
            "opset_version"
        )
    return model


def _find_external_files(model: onnx.ModelProto, path: Path) -> list[Path]:
    """Return the further files that hold weights, once each.

    Raises:
        ToolchainError: one is missing, or shorter than the weights in it.
    """
    ends: dict[str, int] = {}
    for tensor in _list_tensors(model.graph):
        if tensor.data_location == onnx.TensorProto.EXTERNAL:
            entries = {entry.key: entry.value for entry in tensor.external_data}
            location = entries.get("location", "")
            end = int(entries.get("offset") or 0) + int(entries.get("length") or 0)
            ends[location] = max(end, ends.get(location, 0))
    found = []
    for location, end in ends.items():
        file = path.parent / location
        if not file.is_file():
            raise ToolchainError(
                f"{path} keeps its weights in a second file, {location}, which is not beside it: copy both into one folder, or "
                "export with external_data=False"
            )
        size = file.stat().st_size
        if size < end:
            head = foreign_files.read_head(file)
            raise foreign_files.explain_pointer(file, head) or foreign_files.explain_cut(file, end)
        found.append(file)
    return found


def _list_tensors(graph: onnx.GraphProto) -> list[onnx.TensorProto]:
    """Return the constants of a graph: initializers, and tensors in the attributes of nodes."""
    attributes = [attribute.t for node in graph.node for attribute in node.attribute if attribute.HasField("t")]
    return [*graph.initializer, *attributes]


def _check_operations(model: onnx.ModelProto, path: Path) -> None:
    nodes = [*model.graph.node, *(node for function in model.functions for node in function.node)]
    functions = {(function.domain, function.name) for function in model.functions}
    quantized = sorted({node.op_type for node in nodes if node.op_type in QUANTIZED_OPS})
    if quantized:
        raise ToolchainError(
            f"{path} is already quantized ({', '.join(quantized[:MAX_NAMED])}). Ranges are calibrated here from the float model: "
            "give the float ONNX file that it was made from"
        )
    foreign = {
        f"{node.domain}::{node.op_type}"
        for node in nodes
        if node.domain not in STANDARD_DOMAINS and (node.domain, node.op_type) not in functions
    }
    if foreign:
        raise ToolchainError(
            f"{path} has operations that are not in the ONNX standard: {list_names(sorted(foreign))}. The runtimes of a target "
            "have no kernels for them, or only one of them has: export the model with standard operations, before any tool "
            "fuses them"
        )
    training = [node.name or node.output[0] for node in nodes if _is_in_training_mode(node)]
    if training:
        raise ToolchainError(
            f"{path} was exported in training mode ({list_names(training)}): its results change with the batch. Call "
            "model.eval() and export it again"
        )


def _is_in_training_mode(node: onnx.NodeProto) -> bool:
    return node.op_type == "BatchNormalization" and any(a.name == "training_mode" and a.i for a in node.attribute)


def list_names(names: Sequence[str]) -> str:
    """Return the first few names, with the number of the others."""
    rest = f" and {len(names) - MAX_NAMED} more" if len(names) > MAX_NAMED else ""
    return ", ".join(names[:MAX_NAMED]) + rest


def _hash_files(paths: Sequence[Path]) -> str:
    hashes = [files.sha256_file(path) for path in paths]
    return hashes[0] if len(hashes) == 1 else hashlib.sha256("".join(hashes).encode()).hexdigest()
