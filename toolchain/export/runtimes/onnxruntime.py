"""ONNX Runtime on the CPU: reads Q/DQ ONNX and fuses it into int8 kernels when it loads the model."""

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
HAS_UNOPTIMIZED = True  # whether it can run a graph without its own optimizations, to compare with
FILE_NAMES = ("model.onnx",)
FORMS = ("ort",)  # beside ONNX: for minimal builds of the runtime, which read only this form
LAYOUT_OPTIMIZER = "NchwcTransformer"  # it writes layouts for the registers of this machine's processor
# it would quantize the weights of a float layer between int8 ones, against the placement
DISABLED_OPTIMIZERS = ("WeightBiasQuantization",)
# (IR version, operator set, release): a release reads up to these (its compatibility table; 1.17.3 was seen to refuse
# IR version 10, 1.18.1 to read it)
READABLE_FORMATS = ((10, 21, "1.18"), (9, 20, "1.17"), (9, 19, "1.16"))
INTEGER_KERNELS = {"QLinearConv", "QGemm", "QLinearMatMul", "ConvInteger", "MatMulInteger"}
FLOAT_KERNELS = {"Conv", "FusedConv", "Gemm", "FusedGemm", "MatMul", "FusedMatMul"}


def library() -> Any:
    """Import and return the runtime.

    Raises:
        ToolchainError: it is not installed; the message has the command that installs it.
    """
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")  # since 1.29 it reports every session to its maker
    try:
        import onnxruntime
    except ImportError as reason:
        raise ToolchainError(
            f"this target needs ONNX Runtime, which is not installed; install it: {INSTALL}"
        ) from reason
    return onnxruntime


class OrtSession:
    """One loaded model."""

    def __init__(self, session: Any) -> None:
        self._session = session
        self._input = session.get_inputs()[0].name

    def run(self, images: np.ndarray) -> np.ndarray:
        """Return the logits [1, classes] of an image, float32 [1, 3, height, width]."""
        outputs: list[np.ndarray] = self._session.run(None, {self._input: images})
        return outputs[0]

    def outputs(self, images: np.ndarray) -> dict[str, np.ndarray]:
        """Return every output of the graph by its name, for graphs with more than the logits."""
        return self.compute({self._input: images})

    def compute(self, values: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Return every output of a graph by its name, for graphs with any number of inputs."""
        names = [output.name for output in self._session.get_outputs()]
        return dict(zip(names, self._session.run(names, dict(values)), strict=True))

    def save_compiled(self, path: Path) -> None:
        """Return None: ONNX Runtime compiles a model each time it opens it."""


def compile(onnx_path: Path, folder: Path) -> Artefact:
    """Write `folder/model.onnx` with the operations that this runtime fuses into int8 kernels when it loads the model."""
    import onnx_ir

    from toolchain.export import onnx_graph
    from toolchain.export.passes import cleanup, runtime_fusions

    folder.mkdir(parents=True, exist_ok=True)
    path = folder / FILE_NAMES[0]
    model = onnx_ir.load(onnx_path)
    runtime_fusions.hard_sigmoid_to_add(model.graph)
    runtime_fusions.matmul_to_gemm(model.graph)
    cleanup.quantize_biases(model.graph)
    onnx_graph.remove_dead_nodes(model.graph)
    onnx_graph.save_model(model, path)
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


def _session(path: Path, options: Any, *disabled_optimizers: str) -> Any:
    providers = ["CPUExecutionProvider"]
    disabled = [*DISABLED_OPTIMIZERS, *disabled_optimizers]
    return library().InferenceSession(str(path), options, providers=providers, disabled_optimizers=disabled)


def open(path: Path, *, threads: int, precision: Precision, optimized: bool = True) -> OrtSession:
    """Load a model for the CPU.

    Raises:
        ToolchainError: ONNX Runtime is missing or does not load the file, or has no such precision.
    """
    if precision not in PRECISIONS:
        raise ToolchainError(f"ONNX Runtime has no {precision} on the CPU; accepted are {', '.join(PRECISIONS)}")
    try:
        session = _session(path, _options(threads, optimized))
    except Exception as reason:  # the runtime's exceptions share no base class
        raise ToolchainError(f"ONNX Runtime does not load {path}: {first_line(reason)}") from reason
    return OrtSession(session)


def pack(path: Path, stem: Path, *, threads: int, precision: Precision, native: bool) -> ConvertedModel:
    """Write a model as `.ort`, and the list of operators and types that a minimal build of the runtime needs.

    Args:
        path: the model as ONNX.
        stem: path of the files to write, without a suffix.
        threads: of the session that writes the file.
        precision: not used.
        native: whether this machine has the target's instructions; if not, no layouts for them are written.

    Raises:
        ToolchainError: ONNX Runtime does not write it.
    """
    ort_path, operators_path = stem.with_suffix(".ort"), stem.with_name("required_operators.config")
    options, levels = _options(threads, True), library().GraphOptimizationLevel
    options.graph_optimization_level = levels.ORT_ENABLE_ALL if native else levels.ORT_ENABLE_EXTENDED
    options.add_session_config_entry("session.save_model_format", "ORT")
    options.optimized_model_filepath = str(ort_path)
    try:
        _session(path, options, LAYOUT_OPTIMIZER)
        from onnxruntime.tools.ort_format_model import create_config_from_models

        logging.getLogger("ort_format_model.utils").setLevel(logging.WARNING)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ResourceWarning)  # it does not close the file
            create_config_from_models([ort_path], operators_path, enable_type_reduction=True)
            gc.collect()
    except Exception as reason:
        raise ToolchainError(f"ONNX Runtime does not write {path} as {ort_path.name}: {first_line(reason)}") from reason
    # the tool writes the model's path and the time into comments, which would differ from build to build
    lines = [line for line in operators_path.read_text().splitlines() if not line.startswith("#")]
    write_text(operators_path, "\n".join(lines) + "\n")
    return ConvertedModel(files=(ort_path, operators_path), deterministic=False, bound_to=fingerprint())


def coverage(path: Path, *, precision: Precision) -> IntegerCoverage:
    """Count int8 and float kernels in the graph that ONNX Runtime executes after its own optimization.

    Raises:
        ToolchainError: ONNX Runtime is missing, or does not optimize the model.
    """
    import onnx

    from toolchain.export.onnx_graph import WEIGHTED_OPS

    ort = library()
    with tempfile.TemporaryDirectory() as scratch:
        options = _options(1, True)
        # all fusions into int8 kernels, but not the blocked layouts, which rename the float ones
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
        options.optimized_model_filepath = str(Path(scratch) / "optimized.onnx")
        try:
            _session(path, options)
            nodes = onnx.load(options.optimized_model_filepath).graph.node
        except Exception as reason:
            raise ToolchainError(f"ONNX Runtime cannot optimize {path} in {scratch}: {first_line(reason)}") from reason
    layer_names = {node.input[1]: node.name for node in onnx.load(path).graph.node if node.op_type in WEIGHTED_OPS}
    int8_kernels = sum(node.op_type in INTEGER_KERNELS for node in nodes)
    float_layers = tuple(layer_names.get(node.input[1], node.name) for node in nodes if node.op_type in FLOAT_KERNELS)
    return IntegerCoverage(
        integer=int8_kernels, planned=0, total=int8_kernels + len(float_layers), float_ops=float_layers
    )


def signature(path: Path) -> tuple[tuple[int | None, ...], str, bool]:
    """Return an ONNX file's input shape (None for a dynamic dimension), its element type, and whether it is quantized.

    External weights are not read.

    Raises:
        ToolchainError: it is not an ONNX file, or does not have exactly one input.
    """
    import onnx

    try:
        graph = onnx.load(path, load_external_data=False).graph
    except Exception as reason:  # errors of protobuf and of the file system
        raise ToolchainError(f"{path} is not a readable ONNX file: {first_line(reason)}") from reason
    weights = {tensor.name for tensor in graph.initializer}
    inputs = [value for value in graph.input if value.name not in weights]
    if len(inputs) != 1:
        raise ToolchainError(f"{path} has {len(inputs)} inputs; it must have one, the image")
    tensor_type = inputs[0].type.tensor_type
    shape = tuple(dim.dim_value if dim.dim_value > 0 else None for dim in tensor_type.shape.dim)
    dtype = str(onnx.helper.tensor_dtype_to_np_dtype(tensor_type.elem_type))
    return shape, dtype, any(node.op_type in {"DequantizeLinear", *INTEGER_KERNELS} for node in graph.node)


def batched(path: Path, batch: int, folder: Path) -> Path:
    """Write a copy of an ONNX file with another batch size; only running it shows whether its graph supports that."""
    import onnx

    model = onnx.load(path)
    constants = {tensor.name: tensor for tensor in model.graph.initializer}
    for value in (*model.graph.input, *model.graph.output):
        dims = value.type.tensor_type.shape.dim
        if value.name not in constants and len(dims) and dims[0].dim_value in {0, 1}:
            dims[0].dim_value = batch
    del model.graph.value_info[:]
    for number, node in enumerate(node for node in model.graph.node if node.op_type == "Reshape"):
        shape = onnx.numpy_helper.to_array(constants[node.input[1]]) if node.input[1] in constants else np.zeros(0)
        if shape.size and shape[0] == 1:  # a batch of one image
            name = f"{node.input[1]}_batched_{number}"
            batched_shape = np.array([batch, *shape[1:]], np.int64)
            model.graph.initializer.append(onnx.numpy_helper.from_array(batched_shape, name))
            node.input[1] = name
    batched_path = folder / f"{path.stem}-batch{batch}.onnx"
    folder.mkdir(parents=True, exist_ok=True)
    onnx.save(model, batched_path)
    return batched_path


def available(precision: Precision) -> bool:
    """Return whether this machine's processor computes in that precision."""
    return precision in PRECISIONS


def least_version(path: Path) -> str:
    """Return the oldest release that reads a model; "" where that is not known."""
    import onnx

    model = onnx.load(path, load_external_data=False)
    opset = next((operator_set.version for operator_set in model.opset_import if not operator_set.domain), 0)
    releases = [
        release
        for max_ir_version, max_opset, release in READABLE_FORMATS
        if model.ir_version <= max_ir_version and opset <= max_opset
    ]
    return releases[-1] if releases else ""


def fingerprint() -> Mapping[str, str]:
    """Return the versions that decide which kernels run."""
    return {"onnxruntime": library().__version__}


if TYPE_CHECKING:
    from toolchain.export.runtimes import onnxruntime as _this_module

    _: Runtime = _this_module  # mypy compares this module with the protocol
