"""What one runtime computes in one Q/DQ graph: its logits, its integer coverage, and every rounded result it has.

A result that is read becomes an output of the graph, and a runtime may fuse less around an output. So each reading
is held against the graph without outputs of its own: the same logits and as many integer kernels, or it does not
count. OpenVINO, for one, adds to a convolution before it rounds, and has no rounded result of the convolution.
The check is as sharp as the answers are: what changes none of them on these images is not noticed.
"""

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from toolchain.core import registry
from toolchain.core.errors import ToolchainError
from toolchain.core.types import IntegerCoverage
from toolchain.export import quantized_tensors
from toolchain.export.quantized_tensors import QdqGraph, QuantizedTensor
from toolchain.export.runtime import load_runtime

MAX_LOGIT_CHANGE_STEPS = 0.01  # steps; float arithmetic alone changes that much when a node more is in the graph


@dataclass(frozen=True, kw_only=True)
class RuntimeConfig:
    """A runtime, with its optimizations or without."""

    name: str
    runtime: str
    optimized: bool


@dataclass(frozen=True, kw_only=True)
class RuntimeOutputs:
    """What a side computed for all images."""

    logits: np.ndarray  # [images, classes]
    tensors: Mapping[str, np.ndarray]  # dequantized results by their names in the graph, [images, ...]
    fused_layers: tuple[str, ...]  # layers whose rounded result cannot be read without changing the answers
    coverage: IntegerCoverage


def list_configs() -> tuple[RuntimeConfig, ...]:
    """Every runtime, first as the graph is written where it can do that, then optimized."""
    found = list[RuntimeConfig]()
    for name in registry.list_modules("runtimes"):
        if load_runtime(name).HAS_UNOPTIMIZED:
            found.append(RuntimeConfig(name=f"{name} unoptimized", runtime=name, optimized=False))
        found.append(RuntimeConfig(name=name, runtime=name, optimized=True))
    return tuple(found)


def collect(
    side: RuntimeConfig, graph: QdqGraph, found: Sequence[QuantizedTensor], images: np.ndarray, step: float
) -> RuntimeOutputs:
    """Runs images through a graph and through copies that give its rounded results too.

    Args:
        graph: the exported Q/DQ graph, static batch 1.
        found: the results to read.
        images: float32 [images, 3, height, width].
        step: quantization step of the logits.

    Raises:
        ToolchainError: the runtime is not installed, or refuses the graph.
    """
    load_runtime(side.runtime).library()  # not installed is another thing than refused
    logits = graph.model.graph.output[0].name
    values, coverage = _outputs(side, graph, (), images)

    def undisturbed(wanted: Sequence[QuantizedTensor]) -> Mapping[str, np.ndarray] | None:
        given, covered = _outputs(side, graph, wanted, images)
        same = np.abs(given[logits] - values[logits]).max() <= MAX_LOGIT_CHANGE_STEPS * step
        return given if same and covered.integer == coverage.integer else None

    whole = undisturbed(found)
    if whole is not None:
        return RuntimeOutputs(logits=values[logits], tensors=whole, fused_layers=(), coverage=coverage)
    kept, fused = dict(values), list[str]()
    for kind in dict.fromkeys(tap.fusion_pattern for tap in found):
        some = [tap for tap in found if tap.fusion_pattern == kind and tap.tensor_name != logits]
        given = undisturbed(some) if some else {}
        if given is None:
            fused += [tap.layer for tap in some]
        else:
            kept |= given
    return RuntimeOutputs(logits=values[logits], tensors=kept, fused_layers=tuple(fused), coverage=coverage)


def _outputs(
    side: RuntimeConfig, graph: QdqGraph, wanted: Sequence[QuantizedTensor], images: np.ndarray
) -> tuple[dict[str, np.ndarray], IntegerCoverage]:
    """All outputs of a copy with some results as outputs, by name, and how it covers the layers with integers."""
    runtime: Any = load_runtime(side.runtime)
    with tempfile.TemporaryDirectory() as scratch:
        path = Path(scratch) / "tapped.onnx"
        try:
            onnx.save(quantized_tensors.add_outputs(graph.model, wanted), path)
        except OSError as reason:
            raise ToolchainError(
                f"cannot write to {scratch}: {reason.strerror}; is there room on the disk?"
            ) from reason
        made = runtime.compile(path, Path(scratch) / "compiled")
        session = runtime.open(made.path, threads=1, precision="int8", optimized=side.optimized)
        rows = [session.outputs(image[None]) for image in images]
        covered: IntegerCoverage = runtime.coverage(made.path, precision="int8")
    return {name: np.concatenate([row[name] for row in rows]) for name in rows[0]}, covered


def compare_tensor(
    tap: QuantizedTensor, truth: Mapping[str, np.ndarray], reading: RuntimeOutputs
) -> dict[str, float] | None:
    """Largest difference of one result in steps and the share of values that differ; None: this side has no such result."""
    given = reading.tensors.get(tap.tensor_name)
    if given is None:
        return None
    steps = np.abs(given - truth[tap.tensor_name]) / np.float32(tap.step)
    return {"max_steps": float(steps.max()), "differing": float((steps > 0.5).mean()), "values": steps.size}
