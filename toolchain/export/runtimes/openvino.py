"""OpenVINO on the CPU: converts ONNX to IR with int8 weights, and always sets the precision hint.

Without the hint OpenVINO runs float models in bf16 on processors that have it, so "float" would mean two things.
"""

import json
import re
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from toolchain.config.packaging import ConvertedModel
from toolchain.core.errors import ToolchainError, first_line
from toolchain.core.files import make_artefact, open_atomic
from toolchain.core.types import Artefact, IntegerCoverage, Precision
from toolchain.edge import processor

if TYPE_CHECKING:
    from toolchain.export.runtime import Runtime

INSTALL = "pip install 'edge-toolchain[openvino]'"
PRECISIONS: tuple[Precision, ...] = ("f32", "bf16", "int8")
HAS_UNOPTIMIZED = False  # whether it can run a graph without its own optimizations, to compare with
FILE_NAMES = ("model.xml", "model.bin")
FORMS = ("blob",)  # beside IR: the compiled model, which loads faster
# operator set -> first release with it, from OpenVINO's list; IR version 11 came with operator set 8
OPSET_RELEASES = {
    8: "2022.1",
    9: "2022.2",
    10: "2022.3",
    11: "2023.0",
    12: "2023.1",
    13: "2023.2",
    14: "2024.0",
    15: "2024.5",
}
WEIGHTED_LAYERS = {"Convolution", "GroupConvolution", "FullyConnected", "MatMul"}
INTEGER_PRECISIONS = {"u8", "i8"}
BLOB_COMPILER = """
import io, json, sys
import openvino
request, blob = json.loads(sys.argv[1]), io.BytesIO()
openvino.Core().compile_model(request["path"], "CPU", request["properties"]).export_model(blob)
sys.stdout.buffer.write(blob.getvalue())
"""


def library() -> Any:
    """Import and return the runtime.

    Raises:
        ToolchainError: it is not installed; the message has the command that installs it.
    """
    # its converter reports every conversion to its maker, in ten processes, unless this package is missing
    sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]
    try:
        import openvino
    except ImportError as reason:
        raise ToolchainError(f"this target needs OpenVINO, which is not installed; install it: {INSTALL}") from reason
    return openvino


class OpenVinoSession:
    """One compiled model with its own inference request and tensors.

    Images are copied into the request's own input: binding a new tensor at every call costs more than the copy.
    Inference runs in the caller's thread: switching to another one and back takes 0.1 ms, a quarter of the latency of a
    small model.
    """

    def __init__(self, compiled: Any) -> None:
        self.compiled = compiled
        self._request = compiled.create_infer_request()
        self._input = self._request.get_input_tensor().data
        self._output = self._request.get_output_tensor(0).data

    def run(self, images: np.ndarray) -> np.ndarray:
        """Return the logits [1, classes] of an image, float32 [1, 3, height, width]."""
        np.copyto(self._input, images)
        self._request.infer()
        logits: np.ndarray = self._output.copy()
        return logits

    def outputs(self, images: np.ndarray) -> dict[str, np.ndarray]:
        """Return every output of the graph by its name, for graphs with more than the logits."""
        self.run(images)
        return {
            name: self._request.get_output_tensor(index).data.copy()
            for index, output in enumerate(self.compiled.outputs)
            for name in output.get_names()
        }

    def save_compiled(self, path: Path) -> Path:
        """Write the compiled model, which this machine opens several times faster than the IR; return its path."""
        blob = path.with_suffix(".blob")
        with open_atomic(blob) as out:
            out.write(self.compiled.export_model().getvalue())
        return blob


def compile(onnx_path: Path, folder: Path) -> Artefact:
    """Convert ONNX to `model.xml` and `model.bin` with operations that OpenVINO fuses; int8 weights stay int8.

    Raises:
        ToolchainError: OpenVINO is missing, does not convert the file, or cannot write the model.
    """
    import onnx_ir

    from toolchain.export import onnx_graph
    from toolchain.export.passes import runtime_fusions

    ov = library()
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as scratch:
        rewritten = Path(scratch) / onnx_path.name
        try:
            onnx_model = onnx_ir.load(onnx_path)
            runtime_fusions.rewrite_hard_activations(onnx_model.graph)
            runtime_fusions.drop_qdq_after_data_movement(onnx_model.graph)
            runtime_fusions.separate_zero_points(onnx_model.graph)
            onnx_graph.remove_dead_nodes(onnx_model.graph)
            onnx_graph.save_model(onnx_model, rewritten)
            model = ov.convert_model(str(rewritten))
        except Exception as reason:  # the runtime's exceptions share no base class
            raise ToolchainError(f"OpenVINO does not convert {onnx_path}: {first_line(reason)}") from reason
        try:
            ov.save_model(model, str(folder / FILE_NAMES[0]), compress_to_fp16=False)
        except Exception as reason:
            raise ToolchainError(
                f"OpenVINO cannot write to {folder}: {first_line(reason)}; is the disk full?"
            ) from reason
    return make_artefact(*(folder / name for name in FILE_NAMES))


def _properties(threads: int, precision: Precision) -> dict[str, Any]:
    return {
        "PERFORMANCE_HINT": "LATENCY",
        "NUM_STREAMS": "1",
        "INFERENCE_NUM_THREADS": threads,
        "INFERENCE_PRECISION_HINT": "bf16" if precision == "bf16" else "f32",
    }


def open(path: Path, *, threads: int, precision: Precision, optimized: bool = True) -> OpenVinoSession:
    """Compile an IR or ONNX file for the CPU, or load a blob.

    OpenVINO cannot run without its optimizations: `optimized` is ignored.

    Raises:
        ToolchainError: OpenVINO is missing, or does not load the file.
    """
    ov = library()
    try:
        if path.suffix == ".blob":
            compiled = ov.Core().import_model(path.read_bytes(), "CPU", _properties(threads, precision))
        else:
            compiled = ov.Core().compile_model(str(path), "CPU", _properties(threads, precision))
    except Exception as reason:  # the runtime's exceptions share no base class
        raise ToolchainError(f"OpenVINO does not load {path}: {first_line(reason)}") from reason
    return OpenVinoSession(compiled)


def pack(path: Path, stem: Path, *, threads: int, precision: Precision, native: bool) -> ConvertedModel:
    """Write a model as OpenVINO's compiled blob, which only this OpenVINO version and these instructions can load.

    Args:
        path: the model as IR.
        stem: path of the blob, without a suffix.
        threads: number of threads that the blob is compiled for.
        precision: of float operations.
        native: whether this machine has the target's instructions.

    Raises:
        ToolchainError: this machine lacks the target's instructions, or OpenVINO does not write the blob.
    """
    if not native:
        raise ToolchainError(
            f"a blob is compiled for the machine that writes it, and this one lacks the target's instructions; build it "
            f"on a machine that has them, or remove {FORMS[0]!r} from [package] forms"
        )
    blob = stem.with_suffix(".blob")
    # in its own process: names in a blob are numbered by what the process has compiled before
    request = json.dumps({"path": str(path), "properties": _properties(threads, precision)})
    process = subprocess.run([sys.executable, "-P", "-c", BLOB_COMPILER, request], capture_output=True, check=False)
    if process.returncode or not process.stdout:
        reason = (process.stderr.decode(errors="replace").strip().splitlines() or ["no reason given"])[-1]
        raise ToolchainError(f"OpenVINO does not write {path} as {blob.name}: {reason}")
    with open_atomic(blob) as out:
        out.write(process.stdout)
    return ConvertedModel(
        files=(blob,), deterministic=True, bound_to={**fingerprint(), "isa": str(processor.describe()["isa"])}
    )


def coverage(path: Path, *, precision: Precision) -> IntegerCoverage:
    """Count convolutions and linear layers by the precision in which OpenVINO reports that it executes them.

    Raises:
        ToolchainError: OpenVINO is missing, or does not load the model.
    """
    session = open(path, threads=1, precision=precision)
    int8_layers, float_layers = 0, []
    for node in session.compiled.get_runtime_model().get_ops():
        info = node.get_rt_info()
        if _text(info, "layerType") not in WEIGHTED_LAYERS:
            continue
        if _text(info, "runtimePrecision") in INTEGER_PRECISIONS:
            int8_layers += 1
        else:
            name = _text(info, "originalLayersNames").split(",")[0] or node.get_friendly_name()
            float_layers.append(name.removesuffix("/WithoutBiases"))
    return IntegerCoverage(
        integer=int8_layers, planned=0, total=int8_layers + len(float_layers), float_ops=tuple(float_layers)
    )


def _text(info: Any, key: str) -> str:
    value = info[key] if key in info else ""  # noqa: SIM401  RTMap has no get()
    return str(value.astype(str) if hasattr(value, "astype") else value)


def signature(path: Path) -> tuple[tuple[int | None, ...], str, bool]:
    """Return a model's input shape (None for a dynamic dimension), its element type, and whether it is quantized.

    Raises:
        ToolchainError: OpenVINO is missing or cannot read the file, or the model does not have exactly one input.
    """
    ov = library()
    try:
        model = ov.Core().read_model(str(path))
    except Exception as reason:
        raise ToolchainError(f"{path} is not a readable OpenVINO model: {first_line(reason)}") from reason
    if len(model.inputs) != 1:
        raise ToolchainError(f"{path} has {len(model.inputs)} inputs; it must have one, the image")
    image = model.input()
    shape = tuple(dim.get_length() if dim.is_static else None for dim in image.partial_shape)
    quantized = any(node.get_type_name() == "FakeQuantize" for node in model.get_ops())
    return shape, str(image.element_type.to_dtype()), quantized


def batched(path: Path, batch: int, folder: Path) -> Path:
    """Write a copy of a model with another batch size.

    Raises:
        ToolchainError: its graph is fixed to another batch size.
    """
    ov = library()
    batched_path = folder / f"{path.stem}-batch{batch}.xml"
    folder.mkdir(parents=True, exist_ok=True)
    try:
        model = ov.Core().read_model(str(path))
        shape = model.input().partial_shape
        model.reshape([batch, *(shape[i] for i in range(1, len(shape)))])
        ov.save_model(model, str(batched_path), compress_to_fp16=False)
    except Exception as reason:
        raise ToolchainError(f"the model is fixed to a batch size other than {batch}") from reason
    return batched_path


def available(precision: Precision) -> bool:
    """Return whether this machine's processor computes in that precision; OpenVINO would fall back silently."""
    return precision != "bf16" or "BF16" in library().Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")


def least_version(path: Path) -> str:
    """Return the oldest release that reads a model; "" where that is not known."""
    newest = max(map(int, re.findall(r'version="opset(\d+)"', path.read_text())), default=0)
    return OPSET_RELEASES.get(max(newest, min(OPSET_RELEASES)), "")


def fingerprint() -> Mapping[str, str]:
    """Return the versions that decide which kernels run."""
    return {"openvino": library().__version__}


if TYPE_CHECKING:
    from toolchain.export.runtimes import openvino as _this_module

    _: Runtime = _this_module  # mypy compares this module with the protocol
