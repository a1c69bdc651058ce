"""What a core can do: the share of it that a model reaches says how much is left to gain.

The yardstick is a large convolution in the same runtime, precision and number of threads.
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
    """Multiply-accumulates a second by precision; none where the runtime does not compile the convolution."""
    room = load_runtime(runtime)
    shape = (1, CHANNELS, FEATURE_MAP_SIZE, FEATURE_MAP_SIZE)
    sides = []
    for precision in sorted(precisions):
        path = folder / f"peak-{precision}.onnx"
        with files.open_atomic(path) as out:
            out.write(_graph(precision == "int8").SerializeToString(deterministic=True))
        try:
            compiled = room.compile(path, folder / f"peak-{precision}")
        except ToolchainError:
            continue  # no yardstick, no share; the report says "not measured"
        sides.append(
            TimedModel(
                name=f"peak-{precision}", runtime=runtime, path=str(compiled.path), precision=precision, threads=threads,
                shape=shape, device=device,
            )
        )  # fmt: skip
    measured = (
        paired_rounds.measure(sides, ROUNDS, seed, folder / "peaks.json", "bench: this core's peak") if sides else []
    )
    macs = CHANNELS**2 * 9 * FEATURE_MAP_SIZE**2
    best = {s.name: min(min(b) for one in measured for b in one.blocks[s.name]) for s in sides}
    return {name.removeprefix("peak-"): macs / (ms * 1e-3) for name, ms in best.items()}


def _graph(integer: bool) -> onnx.ModelProto:
    random = np.random.default_rng(0)
    shape = [1, CHANNELS, FEATURE_MAP_SIZE, FEATURE_MAP_SIZE]
    kernel = random.standard_normal((CHANNELS, CHANNELS, 3, 3), dtype=np.float32)
    tensors: dict[str, Any] = {"w": (kernel * 30).astype(np.int8) if integer else kernel}
    conv = helper.make_node(
        "Conv", ["x_", "w_"] if integer else ["input", "w"], ["y" if integer else "logits"], pads=[1] * 4
    )
    nodes = [conv]
    if integer:
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
