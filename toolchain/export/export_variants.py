"""export: trained model, target -> artefact in the target's runtime. Static batch 1, nothing of this machine inside."""

import copy
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor, nn

from toolchain import discover, machine, progress, quantizer, records
from toolchain.onnx_export import output_step, to_onnx
from toolchain.stages.quantize import Family, Quantized
from toolchain.surgery import layers
from toolchain.values import Artefact, Precision, Target, Variant

VERSION = 4
ONNX = "exported.onnx"
NAMES: Mapping[Precision, str] = {"f32": "fp32", "bf16": "bf16", "int8": "int8"}


@dataclass(frozen=True)
class Exported:
    """An artefact, the ONNX file it was compiled from, and the quantization step of its output."""

    artefact: Artefact
    onnx: Path
    output_step: float | None


@dataclass(frozen=True)
class Built:
    """A variant beside the torch model that it must agree with."""

    variant: Variant
    model: nn.Module


def variants(families: Sequence[Family], target: Target, work: Path) -> list[Built]:
    """Every family in every precision of the target; the first is dense-fp32, the baseline."""
    built = []
    for family in families:
        image = family.data.example
        sizes = layers(family.trained.model, image)
        for precision in target.precisions:
            if not machine.available(target, precision):
                progress.say(f"export: {target.device or 'this machine'} has no {precision}; left out")
                continue
            quantized = family.quantized if precision == "int8" else None
            model, key = (quantized, quantized.trained.key) if quantized else (family.trained.model, family.trained.key)
            made = run(model, key, target, image, work)
            variant = Variant(
                name=f"{family.name}-{NAMES[precision]}", family=family.name, precision=precision,
                method=quantized.method if quantized else "", artefact=made.artefact, onnx=made.onnx,
                image_size=family.data.preprocess.image_size, planned=quantized.planned if quantized else (), output_step=made.output_step,
                macs=sum(layer.macs for layer in sizes),
                parameters=sum(parameter.numel() for parameter in family.trained.model.parameters()),
            )  # fmt: skip
            built.append(Built(variant, quantized.graph if quantized else family.trained.model))
    return built


def run(model: nn.Module | Quantized, key: str, target: Target, image: Tensor, work: Path) -> Exported:
    """Exports a float model or a quantized one.

    Args:
        model: float module in inference form, or the result of quantize.
        key: identifies the model's weights.
        image: one example input, float32 [1, 3, height, width].

    Raises:
        ToolchainError: an operation cannot be exported, or the runtime does not take it.
    """
    runtime = discover.module("runtimes", target.runtime)
    key = records.digest(VERSION, key, target.runtime, runtime.fingerprint(), list(image.shape))
    with records.stage(work, "export", key) as stage:
        path = stage.folder / ONNX
        if stage.figures is None:
            started = time.monotonic()
            progress.say(f"export: to {target.runtime} ({key})")
            module = quantizer.convert(model.graph, image) if isinstance(model, Quantized) else copy.deepcopy(model)
            to_onnx(module, image, path)
            made = runtime.compile(path, stage.folder)
            stage = records.finish(
                stage, started, {"files": [file.name for file in made.files], "step": output_step(path)}
            )
        assert stage.figures is not None
        files = [stage.folder / name for name in stage.figures["files"]]
        return Exported(records.artefact(*files), path, stage.figures["step"])
