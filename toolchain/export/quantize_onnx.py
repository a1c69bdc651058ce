"""Quantize a model that is only an ONNX file: calibration alone, with the methods that torch models are calibrated by.

Nothing is trained. Ranges come from the calibration images; the method and the correction are kept whose logits stay closest
to the float model's on validation, which takes no labels.
"""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import onnx_ir as ir
from torch import Tensor

from toolchain.config.job import Job
from toolchain.config.recipe import CalibrationMethod, CorrectionMethod, QuantizeSpec
from toolchain.config.target import QuantScheme
from toolchain.core import files, progress, stage_cache
from toolchain.core.types import NetworkName
from toolchain.data import loader
from toolchain.data.decoded_dataset import Dataset
from toolchain.export import insert_qdq, onnx_bias_correction, onnx_graph, onnx_model, onnx_ranges
from toolchain.export.onnx_bias_correction import OutputStatistics
from toolchain.export.onnx_model import OnnxModule
from toolchain.quantization import quantize
from toolchain.quantization.placement import Placement
from toolchain.quantization.placement_result import PlacementResult
from toolchain.quantization.quantize import CalibrationTrial, Network, QuantizedModel
from toolchain.quantization.ranges import choose_ranges
from toolchain.training import loop
from toolchain.training.finetune import FinetunedModel
from toolchain.training.trained_model import TrainedModel

VERSION = 1
QDQ_FILE = "qdq.onnx"


@dataclass
class Calibration:
    """What every trial of a calibration shares, collected once from the float graph."""

    model: OnnxModule
    placement: Placement
    scheme: QuantScheme
    dataset: Dataset
    folder: Path
    trials: list[tuple[CalibrationTrial, ir.Model]] = field(default_factory=list)

    def __post_init__(self) -> None:
        """Run the float graph over the calibration images and a part of the validation images."""
        batches = loader.ordered_batches(self.dataset.calibration_images, self.dataset.preprocess, 1)
        images = [image for image, _ in batches]
        groups = insert_qdq.group_quantized_values(self.model.graph, self.placement)
        self.histograms = onnx_ranges.collect_histograms(self.model, groups, images, self.folder)
        self.correction_images = images[: quantize.count_correction_images(images[0])]
        self.validation = quantize.choose_validation_images(self.dataset)
        self.float_logits = loop.predict(self.model, self.validation, self.dataset.preprocess)
        self.float_outputs: Sequence[OutputStatistics] = ()

    def attempt(self, method: CalibrationMethod, correction: CorrectionMethod) -> CalibrationTrial:
        """Quantize one way and compare the logits with the float model's on validation."""
        ranges = choose_ranges(self.histograms, method)
        graph = insert_qdq.insert(self.model.graph, self.placement, self.scheme, ranges)
        if correction != "none":
            self._correct(graph, self.correction_images, match_std=correction == "norm")
        path = self.folder / f"{method}-{correction}.onnx"
        onnx_graph.save_model(graph, path)
        logits = loop.predict(OnnxModule(graph, path), self.validation, self.dataset.preprocess)
        path.unlink()
        trial = quantize.score_calibration(method, correction, logits, self.float_logits, self.validation)
        self.trials.append((trial, graph))
        return trial

    def _correct(self, graph: ir.Model, images: Sequence[Tensor], *, match_std: bool) -> None:
        if not self.float_outputs:
            self.float_outputs = onnx_bias_correction.measure_float(self.model, images, self.folder)
        onnx_bias_correction.correct_layers(graph, self.float_outputs, images, self.folder, match_std=match_std)


def run(job: Job, dense: FinetunedModel, placed: Mapping[NetworkName, PlacementResult]) -> dict[NetworkName, Network]:
    """Quantize the model of an ONNX file by calibration, where the target has int8.

    Args:
        job: its recipe says which methods to try.
        dense: the model and its dataset.
        placed: its placement.
    """
    quantized = None
    if "int8" in job.target.precisions:
        quantized = calibrate(job, dense.trained, placed["dense"].placement, dense.dataset)
    return {"dense": Network("dense", dense.trained, quantized, dense.dataset)}


def calibrate(job: Job, source: TrainedModel, placement: Placement, dataset: Dataset) -> QuantizedModel:
    """Calibrate the graph of an ONNX file for a placement, or read the result of an earlier run.

    Args:
        job: its recipe, target and work folder.
        source: the float model, an `OnnxModule`.
        placement: what is quantized.
        dataset: its calibration images and its validation split are used.
    """
    spec, scheme, model = job.recipe.quantize, job.target.scheme, source.model
    assert isinstance(model, OnnxModule)
    runtime = onnx_model.runtime_version()
    key = files.digest(
        VERSION, source.key, placement, scheme, spec.calibration, spec.correction, dataset.calibration_digest,
        dataset.digest, dataset.preprocess, runtime,
    )  # fmt: skip
    with stage_cache.open_stage(job.work, "quantize", key) as stage:
        if stage.record is None:
            started = time.monotonic()
            trials, graph = choose_calibration(model, placement, scheme, dataset, spec, stage.folder)
            onnx_graph.save_model(graph, stage.folder / QDQ_FILE)
            record = {"starts": trials, "findings": [], "history": [], "best_epoch": -1}
            stage = stage_cache.finish(stage, started, record)
        else:
            progress.log(f"quantize: result of an earlier run reused (cache key {key})")
        assert stage.record is not None
        path = stage.folder / QDQ_FILE
        trained = TrainedModel(OnnxModule(ir.load(path), path), key, stage.record, stage.seconds)
    planned = insert_qdq.list_quantized_layers(model.graph, placement)
    return QuantizedModel(trained, placement, planned, method="ptq", requested_method="ptq")


def choose_calibration(
    model: OnnxModule, placement: Placement, scheme: QuantScheme, dataset: Dataset, spec: QuantizeSpec, folder: Path
) -> tuple[list[CalibrationTrial], ir.Model]:
    """Return all trials, the best first, and its Q/DQ graph: first the method is chosen, then the correction.

    Args:
        model: the float graph.
        placement: what is quantized.
        scheme: integer types.
        dataset: its calibration images and its validation split are used.
        spec: which methods and corrections to try; "auto" means all.
        folder: for temporary files.
    """
    calibration = Calibration(model, placement, scheme, dataset, folder)
    quantize.try_calibrations(spec, calibration.attempt)
    ranked = sorted(calibration.trials, key=lambda trial_and_graph: trial_and_graph[0].divergence)
    return [trial for trial, _ in ranked], ranked[0][1]
