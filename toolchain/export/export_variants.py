"""export: trained model, target -> artefact in the target's runtime. Static batch 1, nothing of this machine inside."""

import copy
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from torch import Tensor, nn

from toolchain.config.job import Job
from toolchain.config.target import Target
from toolchain.core import files as records
from toolchain.core import progress, stage_cache
from toolchain.core.types import Artefact, NetworkName, Precision
from toolchain.export.runtime import load_runtime
from toolchain.export.to_onnx import export_file, read_output_step
from toolchain.models.profile import measure_layers
from toolchain.quantization import pt2e
from toolchain.quantization.quantize import Network, QuantizedModel


@dataclass(frozen=True, kw_only=True)
class Variant:
    """One model as a runtime runs it: dense or pruned, in one precision."""

    name: str  # "dense-fp32", "pruned-int8", ...
    network: NetworkName
    precision: Precision
    method: Literal["", "ptq", "qat"]
    artefact: Artefact
    onnx_path: Path
    planned_layers: tuple[str, ...]  # modules that are to run in integers
    image_size: tuple[int, int]  # of the input: height, width
    output_step: float | None  # quantization step of the logits; None: they are float
    macs: int
    parameters: int


VERSION = 4
ONNX_FILE = "exported.onnx"
PRECISION_NAMES: Mapping[Precision, str] = {"f32": "fp32", "bf16": "bf16", "int8": "int8"}


@dataclass(frozen=True)
class CompiledModel:
    """An artefact, the ONNX file it was compiled from, and the quantization step of its output."""

    artefact: Artefact
    onnx_path: Path
    output_step: float | None


@dataclass(frozen=True)
class ExportedVariant:
    """A variant beside the torch model that it must agree with."""

    variant: Variant
    torch_model: nn.Module


def run(job: Job, networks: Mapping[NetworkName, Network], precisions: Sequence[Precision]) -> list[ExportedVariant]:
    """Export every network in every precision.

    Args:
        job: its target's runtime compiles them.
        networks: the dense one and, where there is one, the pruned one.
        precisions: those of the target that the processor it is timed on computes in.
    """
    built = []
    for family in networks.values():
        image = family.dataset.example_input
        sizes = measure_layers(family.trained.model, image)
        for precision in precisions:
            quantized = family.quantized if precision == "int8" else None
            model, key = (quantized, quantized.trained.key) if quantized else (family.trained.model, family.trained.key)
            made = export_model(model, key, job.target, image, job.work)
            variant = Variant(
                name=f"{family.name}-{PRECISION_NAMES[precision]}", network=family.name, precision=precision,
                method=quantized.method if quantized else "", artefact=made.artefact, onnx_path=made.onnx_path,
                image_size=family.dataset.preprocess.image_size,
                planned_layers=quantized.planned_layers if quantized else (), output_step=made.output_step,
                macs=sum(layer.macs for layer in sizes),
                parameters=sum(parameter.numel() for parameter in family.trained.model.parameters()),
            )  # fmt: skip
            built.append(ExportedVariant(variant, quantized.graph if quantized else family.trained.model))
    return built


def export_model(
    model: nn.Module | QuantizedModel, key: str, target: Target, image: Tensor, work: Path
) -> CompiledModel:
    """Exports a float model or a quantized one.

    Args:
        model: float module in inference form, or the result of quantize.
        key: identifies the model's weights.
        image: one example input, float32 [1, 3, height, width].

    Raises:
        ToolchainError: an operation cannot be exported, or the runtime does not take it.
    """
    runtime = load_runtime(target.runtime)
    key = records.digest(VERSION, key, target.runtime, runtime.fingerprint(), list(image.shape))
    with stage_cache.open_stage(work, "export", key) as stage:
        path = stage.folder / ONNX_FILE
        if stage.record is None:
            started = time.monotonic()
            progress.log(f"export: to {target.runtime} ({key})")
            module = pt2e.convert(model.graph, image) if isinstance(model, QuantizedModel) else copy.deepcopy(model)
            export_file(module, image, path)
            made = runtime.compile(path, stage.folder)
            stage = stage_cache.finish(
                stage, started, {"files": [file.name for file in made.files], "step": read_output_step(path)}
            )
        assert stage.record is not None
        files = [stage.folder / name for name in stage.record["files"]]
        return CompiledModel(records.make_artefact(*files), path, stage.record["step"])
