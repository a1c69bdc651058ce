"""Peak throughput of a core, to compare a model's with: the share that a model reaches says how much is left to gain.

The peak is that of a large convolution in the same runtime, precision and number of threads.
"""

from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from toolchain.core import files
from toolchain.core.errors import ToolchainError
from toolchain.core.types import Precision
from toolchain.export.runtime import load_runtime
from toolchain.measure import paired_rounds
from toolchain.measure.paired_timing import TimedModel

ROUNDS = 3
CHANNELS, FEATURE_MAP_SIZE = 256, 28  # 3x3 convolution: 462 M multiply-accumulates, long rows, fits the cache


def measure(
    runtime: str, threads: int, seed: int, folder: Path, precisions: set[Precision], device: str = ""
) -> dict[str, float]:
    """Measure the peak throughput of a runtime.

    Args:
        runtime: name of the runtime.
        threads: number of threads.
        seed: of the first round.
        folder: for the convolutions and for the rounds.
        precisions: to measure.
        device: board to measure on, such as "ssh:user@host"; empty: this machine.

    Returns:
        multiply-accumulates a second by precision; a precision is missing where the runtime does not compile the
        convolution.
    """
    compiler = load_runtime(runtime)
    shape = (1, CHANNELS, FEATURE_MAP_SIZE, FEATURE_MAP_SIZE)
    models = []
    for precision in sorted(precisions):
        path = folder / f"peak-{precision}.onnx"
        with files.open_atomic(path) as out:
            out.write(_build_convolution(precision == "int8").SerializeToString(deterministic=True))
        try:
            compiled = compiler.compile(path, folder / f"peak-{precision}")
        except ToolchainError:
            continue  # without a peak there is no share of it; the report says "not measured"
        models.append(
            TimedModel(
                name=f"peak-{precision}", runtime=runtime, path=str(compiled.path), precision=precision, threads=threads,
                shape=shape, device=device,
            )
        )  # fmt: skip
    rounds = (
        paired_rounds.measure(models, ROUNDS, seed, folder / "peaks.json", "bench: peak throughput") if models else []
    )
    macs = CHANNELS**2 * 9 * FEATURE_MAP_SIZE**2
    fastest_ms = {
        model.name: min(min(block) for measured in rounds for block in measured.blocks[model.name]) for model in models
    }
    return {name.removeprefix("peak-"): macs / (ms * 1e-3) for name, ms in fastest_ms.items()}


def _build_convolution(quantized: bool) -> onnx.ModelProto:
    """Return a graph of one 3x3 convolution, float32 or with Q/DQ pairs in int8."""
    random = np.random.default_rng(0)
    shape = [1, CHANNELS, FEATURE_MAP_SIZE, FEATURE_MAP_SIZE]
    kernel = random.standard_normal((CHANNELS, CHANNELS, 3, 3), dtype=np.float32)
    tensors: dict[str, Any] = {"w": (kernel * 30).astype(np.int8) if quantized else kernel}
    conv = helper.make_node(
        "Conv", ["x_", "w_"] if quantized else ["input", "w"], ["y" if quantized else "logits"], pads=[1] * 4
    )
    nodes = [conv]
    if quantized:
        tensors |= {"s": np.float32(0.05), "z": np.uint8(128), "ws": np.full(CHANNELS, 0.02, np.float32)}
        tensors |= {"wz": np.zeros(CHANNELS, np.int8), "ys": np.float32(1.0)}
        nodes = [
            helper.make_node("QuantizeLinear", ["input", "s", "z"], ["xq"]),
            helper.make_node("DequantizeLinear", ["xq", "s", "z"], ["x_"]),
            helper.make_node("DequantizeLinear", ["w", "ws", "wz"], ["w_"], axis=0),
            conv,
            helper.make_node("QuantizeLinear", ["y", "ys", "z"], ["yq"]),
            helper.make_node("DequantizeLinear", ["yq", "ys", "z"], ["logits"]),
        ]
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name in ("input", "logits")]
    constants = [numpy_helper.from_array(np.asarray(value), name) for name, value in tensors.items()]
    graph = helper.make_graph(nodes, "peak", ends[:1], ends[1:], constants)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
