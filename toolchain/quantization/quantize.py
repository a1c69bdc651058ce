"""quantize: small model, scheme, placement -> fake-quantized trained model; never worse on validation than calibrated.

Ranges are first drawn from the calibration images, by the method that stays closest to the float model on validation.
Training then moves weights and ranges together; the ranges of activations are frozen for the last epoch, so that what
is validated is what is exported.
"""

import copy
import dataclasses
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.fx import GraphModule

from toolchain.config.job import Job
from toolchain.config.recipe import CalibrationMethod, CorrectionMethod, QuantizeSpec
from toolchain.core import files, progress, stage_cache
from toolchain.core.types import NetworkName
from toolchain.data import loader
from toolchain.data.decoded_dataset import Dataset, Images
from toolchain.quantization import bias_correction, calibration_checks, pt2e, ranges
from toolchain.quantization.placement import Placement
from toolchain.quantization.placement_result import PlacementResult
from toolchain.training import loop
from toolchain.training import trained_model as trained_module
from toolchain.training.finetune import FinetunedModel

VERSION = 8
MAX_CHOICE_IMAGES = 1024  # of validation, at most, to choose a calibration by
MAX_CHECKED_IMAGES = 512  # of validation, at most, to look for clipped values
MAX_CORRECTION_PIXELS = 64 * 224 * 224  # of images whose activations are in memory together


@dataclass(frozen=True)
class CalibrationTrial:
    """One way to calibrate, and how far it is from the float model on validation."""

    method: CalibrationMethod
    correction: CorrectionMethod
    divergence: float  # Kullback-Leibler, nats an image, from the float model's answers
    accuracy: float  # on the validation images that the choice is made by


@dataclass(frozen=True)
class QuantizedModel:
    """A fake-quantized graph ready for export."""

    trained: trained_module.TrainedModel
    placement: Placement
    planned_layers: tuple[str, ...]  # modules that are to run in integers
    method: Literal["qat", "ptq"]  # "ptq" where calibration was all, or training did not improve on it
    requested_method: Literal["qat", "ptq"]

    @property
    def graph(self) -> GraphModule:
        """The fake-quantized model."""
        assert isinstance(self.trained.model, GraphModule)
        return self.trained.model


@dataclass(frozen=True)
class Network:
    """The float and the quantized form of one architecture."""

    name: NetworkName
    trained: trained_module.TrainedModel
    quantized: QuantizedModel | None  # None where the target has no integers
    dataset: Dataset  # at the size that it takes its pictures


def shipping(networks: Mapping[NetworkName, Network]) -> NetworkName:
    """Return the architecture that is to ship: the pruned one where there is one."""
    return "pruned" if "pruned" in networks else "dense"


def run(
    job: Job,
    dense: FinetunedModel,
    view: FinetunedModel,
    small: trained_module.TrainedModel,
    placed: Mapping[NetworkName, PlacementResult],
) -> dict[NetworkName, Network]:
    """Quantize what may ship with training; beside it the dense model by calibration alone, for comparison.

    Where a float form is faster than every int8 one, nothing is trained for int8.

    Args:
        job: whose recipe says how to quantize, and whose target for which kernels.
        dense: the dense model and its images.
        view: the same with images of the size that the pruned model takes.
        small: the pruned model, or the dense one where nothing was pruned.
        placed: the placement of each architecture.

    Raises:
        ToolchainError: a model cannot be exported, or training diverged.
    """

    def network(
        name: NetworkName, source: trained_module.TrainedModel, taught: FinetunedModel, *, ships: bool
    ) -> Network:
        if "int8" not in job.target.precisions:
            return Network(name, source, None, taught.dataset)
        method = "ptq" if not ships or placed[name].float_wins else job.recipe.quantize.method
        teacher = taught.trained.model if method == "qat" else None
        return Network(
            name, source, calibrate_and_train(job, source, teacher, placed[name].placement, taught), taught.dataset
        )

    if small is dense.trained:
        return {"dense": network("dense", small, dense, ships=True)}
    return {
        "dense": network("dense", dense.trained, dense, ships=False),
        "pruned": network("pruned", small, view, ships=True),
    }


def calibrate_and_train(
    job: Job,
    source: trained_module.TrainedModel,
    teacher: nn.Module | None,
    placement: Placement,
    adapted: FinetunedModel,
) -> QuantizedModel:
    """Calibrate, then train with quantization simulated; without a teacher only calibrate.

    Args:
        job: its recipe and target.
        source: the float model; left as it was.
        teacher: the dense model to distil from; None means post-training quantization.
        placement: what is quantized.
        adapted: what the dense model was trained on and with.

    Raises:
        ToolchainError: the model cannot be exported, or training diverged.
    """
    recipe, target, image = job.recipe, job.target, adapted.dataset.example_input
    asked: Literal["qat", "ptq"] = "ptq" if teacher is None else "qat"
    spec = recipe.quantize.train if asked == "qat" else dataclasses.replace(recipe.quantize.train, epochs=0)
    key = files.digest(
        VERSION, source.key, placement, target.scheme, spec, recipe.quantize.calibration,
        recipe.quantize.correction, adapted.augment, recipe.balance, recipe.seed, adapted.dataset.calibration_rows,
    )  # fmt: skip
    graph, planned = pt2e.prepare(source.model, image, placement, target.scheme)
    with stage_cache.open_stage(job.work, "quantize", key) as stage:
        if stage.record is None:
            started = time.monotonic()
            starts, findings = calibrate(graph, adapted.dataset, recipe.quantize)
            training_job = loop.TrainingJob(
                dataset=adapted.dataset, spec=spec, augment=adapted.augment, seed=recipe.seed + 2, label="quantize",
                folder=stage.folder, balance=recipe.balance, teacher=teacher, before_phase=_ranges_until(spec.epochs - 1),
            )  # fmt: skip
            training = loop.train(graph, training_job, keep_start=True)
            figures = {"planned": planned, "starts": files.to_jsonable(starts), "findings": files.to_jsonable(findings)}
            trained = trained_module.save_trained_model(stage, started, graph, training, figures)
        else:
            trained = trained_module.load_trained_model(stage, graph)
    pt2e.configure_fake_quantize(graph, ranges=False, rounding=True)
    method: Literal["qat", "ptq"] = "qat" if trained.record["best_epoch"] >= 0 else "ptq"
    return QuantizedModel(trained, placement, planned, method, asked)


def calibrate(
    graph: GraphModule, data: Dataset, spec: QuantizeSpec
) -> tuple[tuple[CalibrationTrial, ...], tuple[calibration_checks.Finding, ...]]:
    """Draws activation ranges from the calibration images and leaves `graph` with the best of what was tried.

    The best is the closest to the float model's answers on validation: that takes no labels and tells ways apart that
    classify the same images right. Ranges are chosen first, then what to correct with them.

    Returns:
        all that was tried, the best first; and what is wrong with the calibration.

    Raises:
        ToolchainError: no images, or a weight or value that is not finite.
    """
    calibration_checks.check_weights(graph)
    held = _some(data.splits["val"], MAX_CHOICE_IMAGES)
    batches = [images for images, _ in loader.ordered_batches(data.calibration_images, data.preprocess, 64)]
    seen = ranges.collect_histograms(graph, batches)
    wanted = loop.predict(graph, held, data.preprocess)
    few = torch.cat(batches)[: max(16, MAX_CORRECTION_PIXELS // (batches[0].shape[2] * batches[0].shape[3]))]
    methods = get_args(CalibrationMethod) if spec.calibration == "auto" else (spec.calibration,)
    first, *others = get_args(CorrectionMethod) if spec.correction == "auto" else (spec.correction,)
    tried: list[tuple[CalibrationTrial, Mapping[str, Tensor]]] = []
    before = copy.deepcopy(graph.state_dict())
    with progress.show_bar("quantize: calibration", len(methods) + len(others)) as bar:

        def attempt(method: CalibrationMethod, correction: CorrectionMethod) -> None:
            graph.load_state_dict(before)
            ranges.calibrate(graph, seen, method)
            if correction != "none":
                bias_correction.correct_layers(graph, few, match_std=correction == "norm")
            given = loop.predict(graph, held, data.preprocess)
            tried.append((_start(method, correction, given, wanted, held), copy.deepcopy(graph.state_dict())))
            bar.step(f"{method} {tried[-1][0].accuracy:.4f}")

        for method in methods:
            attempt(method, first)
        best = min((start for start, _ in tried), key=lambda start: start.divergence).method
        for correction in others:
            attempt(best, correction)
    tried.sort(key=lambda one: one[0].divergence)
    graph.load_state_dict(tried[0][1])
    looked_at = loader.ordered_batches(_some(data.splits["val"], MAX_CHECKED_IMAGES), data.preprocess, 64)
    found = calibration_checks.check(graph, batches, (images for images, _ in looked_at))
    return tuple(start for start, _ in tried), found


def _some(images: Images, most: int) -> Images:
    return images.select(range(0, len(images), -(-len(images) // most)))


def _start(
    method: CalibrationMethod, correction: CorrectionMethod, given: Tensor, wanted: Tensor, held: Images
) -> CalibrationTrial:
    return CalibrationTrial(method, correction, kl_divergence(given, wanted), loop.score(given, held.labels).accuracy)


def kl_divergence(given: Tensor, wanted: Tensor) -> float:
    """How far logits [images, classes] are from others: Kullback-Leibler, nats an image."""
    found = F.kl_div(given.log_softmax(1), wanted.log_softmax(1), reduction="batchmean", log_target=True)
    return max(0.0, float(found))  # below 0 only by rounding


def _ranges_until(last: int) -> loop.PhaseHook:
    """Observes ranges while training in every epoch before `last`, never while validating."""

    def switch(model: nn.Module, epoch: int, training: bool) -> None:
        pt2e.configure_fake_quantize(model, ranges=training and epoch < last, rounding=True)

    return switch


def notes(networks: Mapping[NetworkName, Network], placed: Mapping[NetworkName, PlacementResult]) -> list[str]:
    """What a reader must know of how the integers came about."""
    found = []
    for family in networks.values():
        own = family.quantized
        if own is None:
            continue
        where = placed[family.name]
        if where.float_wins and where.fastest_int8 and where.fastest_float:
            found.append(
                f"{family.name}: no integer placement is as fast as {where.fastest_float.precision} on this target (the "
                f"best of {len(where.timed_placements)} is {where.fastest_int8.speedup / where.fastest_float.speedup:.2f}x as "
                "fast), so none was trained"
            )
        if own.requested_method == "qat" and own.method == "ptq":
            found.append(
                f"{family.name}: quantization-aware training did not improve on calibration on the validation images, so "
                "the calibrated model was kept"
            )
    return found
