"""The export step: compile every network for the target's runtime in every precision, with static batch 1.

The artefacts hold nothing of the machine that builds them.
"""

import copy
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from torch import Tensor, nn

from toolchain.config.job import Job
from toolchain.config.target import Target
from toolchain.core import files, progress, stage_cache
from toolchain.core.types import Artefact, NetworkName, Precision
from toolchain.export import onnx_graph, quantized_tensors, to_onnx
from toolchain.export.onnx_model import OnnxModule
from toolchain.export.passes import cleanup
from toolchain.export.runtime import load_runtime
from toolchain.models.profile import measure_layers
from toolchain.quantization import pt2e
from toolchain.quantization.quantize import Network, QuantizedModel


@dataclass(frozen=True, kw_only=True)
class Variant:
    """One exported model: a network in one precision, as the runtime runs it."""

    name: str  # "dense-fp32", "pruned-int8", ...
    network: NetworkName
    precision: Precision
    method: Literal["", "ptq", "qat"]
    artefact: Artefact
    onnx_path: Path
    planned_layers: tuple[str, ...]  # modules that are to run in int8
    image_size: tuple[int, int]  # of the input: height, width
    output_step: float | None  # quantization step of the logits; None where they are float
    macs: int
    parameters: int


VERSION = 4
ONNX_FILE = "exported.onnx"
PRECISION_NAMES: Mapping[Precision, str] = {"f32": "fp32", "bf16": "bf16", "int8": "int8"}


@dataclass(frozen=True)
class CompiledModel:
    """An artefact, the ONNX file it was compiled from, and the quantization step of its logits."""

    artefact: Artefact
    onnx_path: Path
    output_step: float | None


@dataclass(frozen=True)
class ExportedVariant:
    """A variant and the model that it must agree with: torch's, or the graph of a given ONNX file."""

    variant: Variant
    torch_model: nn.Module


def run(job: Job, networks: Mapping[NetworkName, Network], precisions: Sequence[Precision]) -> list[ExportedVariant]:
    """Export every network in every precision.

    Args:
        job: its target names the runtime.
        networks: the dense one and, where there is one, the pruned one.
        precisions: those of the target that the processor it is timed on supports.

    Raises:
        ToolchainError: as `export_model`.
    """
    exported = []
    for network in networks.values():
        image = network.dataset.example_input
        macs, parameters = _measure_size(network.trained.model, image)
        for precision in precisions:
            quantized = network.quantized if precision == "int8" else None
            model, key = (
                (quantized, quantized.trained.key) if quantized else (network.trained.model, network.trained.key)
            )
            compiled = export_model(model, key, job.target, image, job.work)
            variant = Variant(
                name=f"{network.name}-{PRECISION_NAMES[precision]}", network=network.name, precision=precision,
                method=quantized.method if quantized else "", artefact=compiled.artefact, onnx_path=compiled.onnx_path,
                image_size=network.dataset.preprocess.image_size,
                planned_layers=quantized.planned_layers if quantized else (), output_step=compiled.output_step,
                macs=macs, parameters=parameters,
            )  # fmt: skip
            exported.append(ExportedVariant(variant, (quantized or network).trained.model))
    return exported


def _measure_size(model: nn.Module, image: Tensor) -> tuple[int, int]:
    """Return the multiply-accumulates of an image and the number of parameters of a float model."""
    if isinstance(model, OnnxModule):
        return model.macs, model.weight_count
    layers = measure_layers(model, image)
    return sum(layer.macs for layer in layers), sum(parameter.numel() for parameter in model.parameters())


def export_model(
    model: nn.Module | QuantizedModel, key: str, target: Target, image: Tensor, work: Path
) -> CompiledModel:
    """Export a float model or a quantized one and compile it for the target's runtime.

    Args:
        model: float module in inference form, or the result of quantize.
        key: cache key that identifies the model's weights.
        target: its runtime compiles the model.
        image: one example input, float32 [1, 3, height, width].
        work: folder of the stage cache.

    Raises:
        ToolchainError: an operation cannot be exported, or the runtime does not accept it.
    """
    runtime = load_runtime(target.runtime)
    key = files.digest(VERSION, key, target.runtime, runtime.fingerprint(), list(image.shape))
    with stage_cache.open_stage(work, "export", key) as stage:
        path = stage.folder / ONNX_FILE
        if stage.record is None:
            started = time.monotonic()
            progress.log(f"export: to {target.runtime} ({key})")
            _write_onnx(model, image, path)
            artefact = runtime.compile(path, stage.folder)
            record = {
                "files": [file.name for file in artefact.files],
                "step": quantized_tensors.read_output_step(path),
            }
            stage = stage_cache.finish(stage, started, record)
        assert stage.record is not None
        artefact_files = [stage.folder / name for name in stage.record["files"]]
        return CompiledModel(files.make_artefact(*artefact_files), path, stage.record["step"])


def _write_onnx(model: nn.Module | QuantizedModel, image: Tensor, path: Path) -> None:
    module = model.trained.model if isinstance(model, QuantizedModel) else model
    if isinstance(module, OnnxModule):
        onnx_graph.save_model(cleanup.clean(module.graph.clone()), path)
        return
    module = pt2e.convert(model.graph, image) if isinstance(model, QuantizedModel) else copy.deepcopy(model)
    to_onnx.export_file(module, image, path)
