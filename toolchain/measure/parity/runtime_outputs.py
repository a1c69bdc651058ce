"""What one runtime computes in a Q/DQ graph: its logits, its int8 coverage, and every quantized tensor that it has.

To read a tensor, it is made an output of the graph, and a runtime may fuse less around an output. So each reading is
compared with the graph without further outputs: it counts only if the logits are the same and as many kernels run in
int8. OpenVINO, for example, adds to a convolution before it rounds, and has no rounded result of the convolution. The
check is as sharp as the logits are: a change that does not alter them on these images is not noticed.
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

MAX_LOGIT_CHANGE_STEPS = 0.01  # float arithmetic alone changes the logits this much when the graph gets another node
MIN_DIFFERENCE_STEPS = 0.5  # a value that differs by more was rounded to another step


@dataclass(frozen=True, kw_only=True)
class RuntimeConfig:
    """A runtime, with or without its optimizations."""

    name: str
    runtime: str
    optimized: bool


@dataclass(frozen=True, kw_only=True)
class RuntimeOutputs:
    """What a runtime computed for all images."""

    logits: np.ndarray  # [images, classes]
    tensors: Mapping[str, np.ndarray]  # dequantized tensors by their names in the graph, [images, ...]
    fused_layers: tuple[str, ...]  # layers whose quantized result cannot be read without a change of the logits
    coverage: IntegerCoverage


def list_configs() -> tuple[RuntimeConfig, ...]:
    """Return every runtime, optimized, and before it the same without optimizations where the runtime can do that."""
    configs = list[RuntimeConfig]()
    for name in registry.list_modules("runtimes"):
        if load_runtime(name).HAS_UNOPTIMIZED:
            configs.append(RuntimeConfig(name=f"{name} unoptimized", runtime=name, optimized=False))
        configs.append(RuntimeConfig(name=name, runtime=name, optimized=True))
    return tuple(configs)


def collect(
    config: RuntimeConfig, graph: QdqGraph, tensors: Sequence[QuantizedTensor], images: np.ndarray, step: float
) -> RuntimeOutputs:
    """Run images through a graph, and through copies that have its quantized tensors as outputs.

    Args:
        config: the runtime.
        graph: the exported Q/DQ graph, static batch 1.
        tensors: to read.
        images: float32 [images, 3, height, width].
        step: quantization step of the logits.

    Raises:
        ToolchainError: the runtime is not installed, or rejects the graph.
    """
    load_runtime(config.runtime).library()  # first, so that "not installed" is not reported as a rejected graph
    logits = graph.model.graph.output[0].name
    plain, coverage = _run_with_outputs(config, graph, (), images)

    def read_unchanged(selected: Sequence[QuantizedTensor]) -> Mapping[str, np.ndarray] | None:
        """Return the outputs with selected tensors; None: reading them changes what the runtime computes."""
        outputs, tapped_coverage = _run_with_outputs(config, graph, selected, images)
        same_logits = np.abs(outputs[logits] - plain[logits]).max() <= MAX_LOGIT_CHANGE_STEPS * step
        return outputs if same_logits and tapped_coverage.integer == coverage.integer else None

    all_outputs = read_unchanged(tensors)
    if all_outputs is not None:
        return RuntimeOutputs(logits=plain[logits], tensors=all_outputs, fused_layers=(), coverage=coverage)
    readable, fused = dict(plain), list[str]()
    for pattern in dict.fromkeys(tensor.fusion_pattern for tensor in tensors):
        alike = [tensor for tensor in tensors if tensor.fusion_pattern == pattern and tensor.tensor_name != logits]
        outputs = read_unchanged(alike) if alike else {}
        if outputs is None:
            fused += [tensor.layer for tensor in alike]
        else:
            readable |= outputs
    return RuntimeOutputs(logits=plain[logits], tensors=readable, fused_layers=tuple(fused), coverage=coverage)


def _run_with_outputs(
    config: RuntimeConfig, graph: QdqGraph, tensors: Sequence[QuantizedTensor], images: np.ndarray
) -> tuple[dict[str, np.ndarray], IntegerCoverage]:
    """Run a copy of the graph that has tensors as further outputs; return all outputs by name, and the int8 coverage."""
    runtime: Any = load_runtime(config.runtime)
    with tempfile.TemporaryDirectory() as scratch:
        path = Path(scratch) / "tapped.onnx"
        try:
            onnx.save(quantized_tensors.add_outputs(graph.model, tensors), path)
        except OSError as reason:
            raise ToolchainError(
                f"cannot write to {scratch}: {reason.strerror}. Check that the disk has free space"
            ) from reason
        artefact = runtime.compile(path, Path(scratch) / "compiled")
        session = runtime.open(artefact.path, threads=1, precision="int8", optimized=config.optimized)
        rows = [session.outputs(image[None]) for image in images]
        coverage: IntegerCoverage = runtime.coverage(artefact.path, precision="int8")
    return {name: np.concatenate([row[name] for row in rows]) for name in rows[0]}, coverage


def compare_tensor(
    tensor: QuantizedTensor, expected: Mapping[str, np.ndarray], outputs: RuntimeOutputs
) -> dict[str, float] | None:
    """Compare one quantized tensor of a runtime with the reference.

    Args:
        tensor: to compare.
        expected: the reference's tensors by name, [images, ...].
        outputs: of the runtime.

    Returns:
        the largest difference in steps, the share of values that differ and the number of values; None where the runtime
        has no such tensor.
    """
    values = outputs.tensors.get(tensor.tensor_name)
    if values is None:
        return None
    steps = np.abs(values - expected[tensor.tensor_name]) / np.float32(tensor.step)
    return {
        "max_steps": float(steps.max()),
        "differing": float((steps > MIN_DIFFERENCE_STEPS).mean()),
        "values": steps.size,
    }
