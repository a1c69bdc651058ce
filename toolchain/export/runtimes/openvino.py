"""OpenVINO on the CPU: converts ONNX to IR with int8 weights; the precision hint is always pinned.

Without a hint OpenVINO runs float models in bf16 on CPUs that have it, which would make "float" mean two things.
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
HAS_UNOPTIMIZED = False  # can run a graph as it is written, to compare with
FILE_NAMES = ("model.xml", "model.bin")
FORMS = ("blob",)  # beside IR: compiled, so that loading takes no time
# first release of each operation set, from OpenVINO's list of them; IR 11 came with the eighth
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
asked, body = json.loads(sys.argv[1]), io.BytesIO()
openvino.Core().compile_model(asked["path"], "CPU", asked["hints"]).export_model(body)
sys.stdout.buffer.write(body.getvalue())
"""


def library() -> Any:
    """The imported runtime.

    Raises:
        ToolchainError: it is not installed; says what to run.
    """
    # its converter tells its maker of every conversion, ten processes each, unless this package is missing
    sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]
    try:
        import openvino
    except ImportError as reason:
        raise ToolchainError(f"this target needs OpenVINO, which is not installed; run: {INSTALL}") from reason
    return openvino


class OpenVinoSession:
    """One compiled model with its own inference request and tensors.

    Images are copied into the request's own input: binding a fresh tensor at every call costs more than the copy.
    It infers in the caller's thread: handing over to another one and back takes 0.1 ms, a quarter of a small model.
    """

    def __init__(self, compiled: Any) -> None:
        self.compiled = compiled
        self._request = compiled.create_infer_request()
        self._input = self._request.get_input_tensor().data
        self._output = self._request.get_output_tensor(0).data

    def run(self, images: np.ndarray) -> np.ndarray:
        """float32 [1, 3, height, width] -> logits [1, classes]."""
        np.copyto(self._input, images)
        self._request.infer()
        logits: np.ndarray = self._output.copy()
        return logits

    def outputs(self, images: np.ndarray) -> dict[str, np.ndarray]:
        """The same input -> every output of the graph by its name; for graphs with more than the logits."""
        self.run(images)
        return {
            name: self._request.get_output_tensor(index).data.copy()
            for index, output in enumerate(self.compiled.outputs)
            for name in output.get_names()
        }

    def save_compiled(self, path: Path) -> Path:
        """Write the model as it was compiled, which this machine opens several times faster than the IR."""
        blob = path.with_suffix(".blob")
        with open_atomic(blob) as out:
            out.write(self.compiled.export_model().getvalue())
        return blob


def compile(onnx_path: Path, folder: Path) -> Artefact:
    """Converts ONNX to `model.xml` and `model.bin`, in operations that it fuses; int8 initialisers stay int8 weights.

    Raises:
        ToolchainError: OpenVINO is missing, or does not convert the file.
    """
    import onnx_ir

    from toolchain.export.passes import cleanup, runtime_fusions

    ov = library()
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as scratch:
        adapted = Path(scratch) / onnx_path.name
        try:
            graph = onnx_ir.load(onnx_path)
            runtime_fusions.rewrite_hard_activations(graph.graph)
            runtime_fusions.drop_qdq_after_data_movement(graph.graph)
            runtime_fusions.separate_zero_points(graph.graph)
            cleanup.remove_dead_nodes(graph.graph)
            cleanup.save(graph, adapted)
            model = ov.convert_model(str(adapted))
        except Exception as reason:  # its exceptions share no base class
            raise ToolchainError(f"OpenVINO does not convert {onnx_path}: {first_line(reason)}") from reason
        try:
            ov.save_model(model, str(folder / FILE_NAMES[0]), compress_to_fp16=False)
        except Exception as reason:
            raise ToolchainError(
                f"OpenVINO cannot write to {folder}: {first_line(reason)}; is there room on the disk?"
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
    """Compiles an IR or ONNX file for the CPU. OpenVINO cannot run without its optimizations: `optimized` is ignored.

    Raises:
        ToolchainError: OpenVINO is missing, or refuses the file.
    """
    ov = library()
    try:
        if path.suffix == ".blob":
            compiled = ov.Core().import_model(path.read_bytes(), "CPU", _properties(threads, precision))
        else:
            compiled = ov.Core().compile_model(str(path), "CPU", _properties(threads, precision))
    except Exception as reason:  # its exceptions share no base class
        raise ToolchainError(f"OpenVINO does not load {path}: {first_line(reason)}") from reason
    return OpenVinoSession(compiled)


def pack(path: Path, stem: Path, *, threads: int, precision: Precision, native: bool) -> ConvertedModel:
    """A model as OpenVINO's compiled blob, which needs this very version and these instructions.

    Raises:
        ToolchainError: this machine lacks the target's instructions, or OpenVINO does not write it.
    """
    if not native:
        raise ToolchainError(
            f"a blob is compiled for the machine that writes it, and this one lacks the target's instructions; build it "
            f"on such a machine, or leave {FORMS[0]!r} out of [package] forms"
        )
    made = stem.with_suffix(".blob")
    # in a process of its own: names in a blob count what the process has compiled before
    asked = json.dumps({"path": str(path), "hints": _properties(threads, precision)})
    ended = subprocess.run([sys.executable, "-P", "-c", BLOB_COMPILER, asked], capture_output=True, check=False)
    if ended.returncode or not ended.stdout:
        reason = (ended.stderr.decode(errors="replace").strip().splitlines() or ["no reason given"])[-1]
        raise ToolchainError(f"OpenVINO does not write {path} as {made.name}: {reason}")
    with open_atomic(made) as out:
        out.write(ended.stdout)
    return ConvertedModel(
        files=(made,), deterministic=True, bound_to={**fingerprint(), "isa": str(processor.describe()["isa"])}
    )


def coverage(path: Path, *, precision: Precision) -> IntegerCoverage:
    """Counts convolutions and linear layers by the precision OpenVINO says it executes them in."""
    session = open(path, threads=1, precision=precision)
    integer, in_float = 0, []
    for node in session.compiled.get_runtime_model().get_ops():
        info = node.get_rt_info()
        if _text(info, "layerType") not in WEIGHTED_LAYERS:
            continue
        if _text(info, "runtimePrecision") in INTEGER_PRECISIONS:
            integer += 1
        else:
            name = _text(info, "originalLayersNames").split(",")[0] or node.get_friendly_name()
            in_float.append(name.removesuffix("/WithoutBiases"))
    return IntegerCoverage(integer=integer, planned=0, total=integer + len(in_float), float_ops=tuple(in_float))


def _text(info: Any, key: str) -> str:
    value = info[key] if key in info else ""  # noqa: SIM401  RTMap has no get()
    return str(value.astype(str) if hasattr(value, "astype") else value)


def signature(path: Path) -> tuple[tuple[int | None, ...], str, bool]:
    """Shape and type of a model's only input, open sides None, and whether it is quantized.

    Raises:
        ToolchainError: OpenVINO is missing or cannot read the file, or it has another number of inputs.
    """
    ov = library()
    try:
        model = ov.Core().read_model(str(path))
    except Exception as reason:
        raise ToolchainError(f"{path} is not a readable OpenVINO model: {first_line(reason)}") from reason
    if len(model.inputs) != 1:
        raise ToolchainError(f"{path} has {len(model.inputs)} inputs; a model of pictures has one")
    source = model.input()
    shape = tuple(dim.get_length() if dim.is_static else None for dim in source.partial_shape)
    return shape, str(source.element_type.to_dtype()), any(n.get_type_name() == "FakeQuantize" for n in model.get_ops())


def batched(path: Path, batch: int, folder: Path) -> Path:
    """A copy of a model for so many pictures at once.

    Raises:
        ToolchainError: its graph is fixed to another number.
    """
    ov = library()
    made = folder / f"{path.stem}-batch{batch}.xml"
    folder.mkdir(parents=True, exist_ok=True)
    try:
        model = ov.Core().read_model(str(path))
        shape = model.input().partial_shape
        model.reshape([batch, *(shape[i] for i in range(1, len(shape)))])
        ov.save_model(model, str(made), compress_to_fp16=False)
    except Exception as reason:
        raise ToolchainError(f"fixed to another number than {batch} pictures") from reason
    return made


def available(precision: Precision) -> bool:
    """Whether this machine's CPU computes in that precision; OpenVINO would fall back in silence."""
    return precision != "bf16" or "BF16" in library().Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")


def least_version(path: Path) -> str:
    """The oldest release that reads a model; "" where that is not known."""
    newest = max(map(int, re.findall(r'version="opset(\d+)"', path.read_text())), default=0)
    return OPSET_RELEASES.get(max(newest, min(OPSET_RELEASES)), "")


def fingerprint() -> Mapping[str, str]:
    """Versions that decide what the kernels do."""
    return {"openvino": library().__version__}


if TYPE_CHECKING:
    from toolchain.export.runtimes import openvino as _this_module

    _: Runtime = _this_module  # mypy compares this module with the protocol
