"""ONNX Runtime on the CPU: takes Q/DQ ONNX as it is, and fuses it into integer kernels when it loads it."""

import gc
import logging
import os
import tempfile
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from toolchain.config.packaging import ConvertedModel
from toolchain.core.errors import ToolchainError, first_line
from toolchain.core.files import make_artefact, write_text
from toolchain.core.types import Artefact, IntegerCoverage, Precision

if TYPE_CHECKING:
    from toolchain.export.runtime import Runtime

INSTALL = "pip install 'edge-toolchain[onnxruntime]'"
PRECISIONS: tuple[Precision, ...] = ("f32", "int8")
HAS_UNOPTIMIZED = True  # can run a graph as it is written, to compare with
FILE_NAMES = ("model.onnx",)
FORMS = ("ort",)  # beside ONNX: for builds of the runtime that read nothing else
LAYOUT_OPTIMIZER = "NchwcTransformer"  # its blocks are as wide as the registers of the machine that writes them
# it would quantize the weights of a layer that was left in float between integer ones, without being asked to
DISABLED_OPTIMIZERS = ("WeightBiasQuantization",)
# what a release reads (its compatibility table; tried: 1.17.3 refuses format 10, 1.18.1 takes it)
READABLE_FORMATS = ((10, 21, "1.18"), (9, 20, "1.17"), (9, 19, "1.16"))  # at most this format and operator set
INTEGER_KERNELS = {"QLinearConv", "QGemm", "QLinearMatMul", "ConvInteger", "MatMulInteger"}
FLOAT_KERNELS = {"Conv", "FusedConv", "Gemm", "FusedGemm", "MatMul", "FusedMatMul"}


def library() -> Any:
    """The imported runtime.

    Raises:
        ToolchainError: it is not installed; says what to run.
    """
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")  # since 1.29 it tells its maker of every session
    try:
        import onnxruntime
    except ImportError as reason:
        raise ToolchainError(f"this target needs ONNX Runtime, which is not installed; run: {INSTALL}") from reason
    return onnxruntime


class OrtSession:
    """One loaded model; `run` is a bare `InferenceSession.run`."""

    def __init__(self, session: Any) -> None:
        self._session = session
        self._input = session.get_inputs()[0].name

    def run(self, images: np.ndarray) -> np.ndarray:
        """float32 [1, 3, height, width] -> logits [1, classes]."""
        outputs: list[np.ndarray] = self._session.run(None, {self._input: images})
        return outputs[0]

    def outputs(self, images: np.ndarray) -> dict[str, np.ndarray]:
        """The same input -> every output of the graph by its name; for graphs with more than the logits."""
        names = [output.name for output in self._session.get_outputs()]
        return dict(zip(names, self._session.run(names, {self._input: images}), strict=True))

    def save_compiled(self, path: Path) -> None:
        """Return None: ONNX Runtime compiles a model when it opens it."""


def compile(onnx_path: Path, folder: Path) -> Artefact:
    """Writes `folder/model.onnx` in operations that this runtime has in integers; it compiles it when it loads it."""
    import onnx_ir

    from toolchain.export.passes import cleanup, runtime_fusions

    folder.mkdir(parents=True, exist_ok=True)
    path = folder / FILE_NAMES[0]
    model = onnx_ir.load(onnx_path)
    runtime_fusions.hard_sigmoid_to_add(model.graph)
    runtime_fusions.matmul_to_gemm(model.graph)
    cleanup.quantize_biases(model.graph)
    cleanup.remove_dead_nodes(model.graph)
    cleanup.save(model, path)
    return make_artefact(path)


def _options(threads: int, optimized: bool) -> Any:
    ort = library()
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    if not optimized:
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    return options


def _session(path: Path, options: Any, *unwanted: str) -> Any:
    providers = ["CPUExecutionProvider"]
    left_out = [*DISABLED_OPTIMIZERS, *unwanted]
    return library().InferenceSession(str(path), options, providers=providers, disabled_optimizers=left_out)


def open(path: Path, *, threads: int, precision: Precision, optimized: bool = True) -> OrtSession:
    """Loads a model for the CPU.

    Raises:
        ToolchainError: ONNX Runtime is missing, or refuses the file.
    """
    if precision not in PRECISIONS:
        raise ToolchainError(f"ONNX Runtime has no {precision} on the CPU; possible are {', '.join(PRECISIONS)}")
    try:
        session = _session(path, _options(threads, optimized))
    except Exception as reason:  # its exceptions share no base class
        raise ToolchainError(f"ONNX Runtime does not load {path}: {first_line(reason)}") from reason
    return OrtSession(session)


def pack(path: Path, stem: Path, *, threads: int, precision: Precision, native: bool) -> ConvertedModel:
    """A model as `.ort`, with the operators and types that a minimal build of the runtime has to have.

    Args:
        path: of the canonical form.
        stem: of the files' names.
        native: whether this machine has the target's kind of instructions; else none of their layouts are written.

    Raises:
        ToolchainError: ONNX Runtime does not write it.
    """
    made, needs = stem.with_suffix(".ort"), stem.with_name("required_operators.config")
    options, levels = _options(threads, True), library().GraphOptimizationLevel
    options.graph_optimization_level = levels.ORT_ENABLE_ALL if native else levels.ORT_ENABLE_EXTENDED
    options.add_session_config_entry("session.save_model_format", "ORT")
    options.optimized_model_filepath = str(made)
    try:
        _session(path, options, LAYOUT_OPTIMIZER)
        from onnxruntime.tools.ort_format_model import create_config_from_models

        logging.getLogger("ort_format_model.utils").setLevel(logging.WARNING)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ResourceWarning)  # it leaves the file to the garbage collector
            create_config_from_models([made], needs, enable_type_reduction=True)
            gc.collect()
    except Exception as reason:
        raise ToolchainError(f"ONNX Runtime does not write {path} as {made.name}: {first_line(reason)}") from reason
    # no clock and no folder: the tool writes where the model lay into a comment
    lines = [line for line in needs.read_text().splitlines() if not line.startswith("#")]
    write_text(needs, "\n".join(lines) + "\n")
    return ConvertedModel(files=(made, needs), deterministic=False, bound_to=fingerprint())


def coverage(path: Path, *, precision: Precision) -> IntegerCoverage:
    """Counts integer and float kernels in the graph that ONNX Runtime executes after its own optimization."""
    import onnx

    ort = library()
    with tempfile.TemporaryDirectory() as scratch:
        options = _options(1, True)
        # all fusions into integer kernels, but not the blocked layouts that rename the float ones
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
        options.optimized_model_filepath = str(Path(scratch) / "optimized.onnx")
        try:
            _session(path, options)
            nodes = onnx.load(options.optimized_model_filepath).graph.node
        except Exception as reason:
            raise ToolchainError(f"ONNX Runtime cannot optimize {path} in {scratch}: {first_line(reason)}") from reason
    named = {
        node.input[1]: node.name for node in onnx.load(path).graph.node if node.op_type in {"Conv", "Gemm", "MatMul"}
    }
    integer = [node for node in nodes if node.op_type in INTEGER_KERNELS]
    in_float = tuple(named.get(node.input[1], node.name) for node in nodes if node.op_type in FLOAT_KERNELS)
    return IntegerCoverage(integer=len(integer), planned=0, total=len(integer) + len(in_float), float_ops=in_float)


def signature(path: Path) -> tuple[tuple[int | None, ...], str, bool]:
    """Shape and type of an ONNX file's only input, open sides None, and whether it is quantized; weights are not read.

    Raises:
        ToolchainError: it is no ONNX file, or has another number of inputs.
    """
    import onnx

    try:
        graph = onnx.load(path, load_external_data=False).graph
    except Exception as reason:  # protobuf's and the file system's
        raise ToolchainError(f"{path} is not a readable ONNX file: {first_line(reason)}") from reason
    weights = {one.name for one in graph.initializer}
    inputs = [one for one in graph.input if one.name not in weights]
    if len(inputs) != 1:
        raise ToolchainError(f"{path} has {len(inputs)} inputs; a model of pictures has one")
    kind = inputs[0].type.tensor_type
    shape = tuple(dim.dim_value if dim.dim_value > 0 else None for dim in kind.shape.dim)
    dtype = str(onnx.helper.tensor_dtype_to_np_dtype(kind.elem_type))
    return shape, dtype, any(node.op_type in {"DequantizeLinear", *INTEGER_KERNELS} for node in graph.node)


def batched(path: Path, batch: int, folder: Path) -> Path:
    """A copy of an ONNX file for so many pictures at once; whether its graph bears that shows when it runs."""
    import onnx

    model = onnx.load(path)
    constants = {one.name: one for one in model.graph.initializer}
    for value in (*model.graph.input, *model.graph.output):
        dims = value.type.tensor_type.shape.dim
        if value.name not in constants and len(dims) and dims[0].dim_value in {0, 1}:
            dims[0].dim_value = batch
    del model.graph.value_info[:]
    for number, node in enumerate(node for node in model.graph.node if node.op_type == "Reshape"):
        shape = onnx.numpy_helper.to_array(constants[node.input[1]]) if node.input[1] in constants else np.zeros(0)
        if shape.size and shape[0] == 1:  # one picture
            name = f"{node.input[1]}_batched_{number}"
            free = np.array([batch, *shape[1:]], np.int64)
            model.graph.initializer.append(onnx.numpy_helper.from_array(free, name))
            node.input[1] = name
    made = folder / f"{path.stem}-batch{batch}.onnx"
    folder.mkdir(parents=True, exist_ok=True)
    onnx.save(model, made)
    return made


def available(precision: Precision) -> bool:
    """Whether this machine's CPU computes in that precision."""
    return precision in PRECISIONS


def least_version(path: Path) -> str:
    """The oldest release that reads a model; "" where that is not known."""
    import onnx

    model = onnx.load(path, load_external_data=False)
    operators = next((one.version for one in model.opset_import if not one.domain), 0)
    able = [release for form, most, release in READABLE_FORMATS if model.ir_version <= form and operators <= most]
    return able[-1] if able else ""


def fingerprint() -> Mapping[str, str]:
    """Versions that decide what the kernels do."""
    return {"onnxruntime": library().__version__}


if TYPE_CHECKING:
    from toolchain.export.runtimes import onnxruntime as _this_module

    _: Runtime = _this_module  # mypy compares this module with the protocol
