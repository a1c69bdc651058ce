"""The quantize step: fake-quantize a trained model, calibrate it and fine-tune it; never worse on validation than
calibration alone.

Activation ranges first come from the calibration images, by the method whose logits stay closest to the float model's on
validation. Training then moves weights and ranges together; the ranges of activations are frozen for the last epoch, so
that the validated model is exactly the exported one.
"""

import copy
import dataclasses
import time
from collections.abc import Callable, Mapping
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
from toolchain.training.finetune import FinetunedModel
from toolchain.training.trained_model import TrainedModel, load_trained_model, save_trained_model

VERSION = 8
MAX_CHOICE_IMAGES = 1024  # validation images that a calibration method is chosen on
MAX_CHECKED_IMAGES = 512  # validation images that the calibration is checked on
MAX_CORRECTION_PIXELS = 64 * 224 * 224  # of the images for bias correction, whose activations are in memory together


@dataclass(frozen=True)
class CalibrationTrial:
    """One way to calibrate, and how close to the float model it is on validation."""

    method: CalibrationMethod
    correction: CorrectionMethod
    divergence: float  # Kullback-Leibler divergence from the float model's predictions, nats an image
    accuracy: float  # on the validation images that the choice is made on


@dataclass(frozen=True)
class QuantizedModel:
    """A fake-quantized graph ready for export."""

    trained: TrainedModel
    placement: Placement
    planned_layers: tuple[str, ...]  # modules that are to run in int8
    method: Literal[
        "qat", "ptq"
    ]  # "ptq" where the model was only calibrated, or training did not improve on calibration
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
    trained: TrainedModel
    quantized: QuantizedModel | None  # None where the target has no int8
    dataset: Dataset  # with images of the size that the network takes


def shipping(networks: Mapping[NetworkName, Network]) -> NetworkName:
    """Return the name of the network that is to ship: the pruned one where there is one."""
    return "pruned" if "pruned" in networks else "dense"


def run(
    job: Job,
    dense: FinetunedModel,
    view: FinetunedModel,
    small: TrainedModel,
    placed: Mapping[NetworkName, PlacementResult],
) -> dict[NetworkName, Network]:
    """Quantize the network that may ship, with training; calibrate the dense one beside it, for comparison.

    Where a float form is faster than every int8 one, nothing is trained for int8.

    Args:
        job: its recipe says how to quantize, its target for which kernels.
        dense: the dense model and its dataset.
        view: the same with images of the size that the pruned model takes.
        small: the pruned model, or the dense one where nothing was pruned.
        placed: the placement of each network.

    Raises:
        ToolchainError: a model cannot be exported, or training diverged.
    """

    def quantize_network(name: NetworkName, source: TrainedModel, teacher: FinetunedModel, *, ships: bool) -> Network:
        if "int8" not in job.target.precisions:
            return Network(name, source, None, teacher.dataset)
        method = "ptq" if not ships or placed[name].float_wins else job.recipe.quantize.method
        teacher_model = teacher.trained.model if method == "qat" else None
        quantized = calibrate_and_train(job, source, teacher_model, placed[name].placement, teacher)
        return Network(name, source, quantized, teacher.dataset)

    if small is dense.trained:
        return {"dense": quantize_network("dense", small, dense, ships=True)}
    return {
        "dense": quantize_network("dense", dense.trained, dense, ships=False),
        "pruned": quantize_network("pruned", small, view, ships=True),
    }


def calibrate_and_train(
    job: Job,
    source: TrainedModel,
    teacher: nn.Module | None,
    placement: Placement,
    finetuned: FinetunedModel,
) -> QuantizedModel:
    """Calibrate, then train with quantization simulated; without a teacher only calibrate.

    Args:
        job: its recipe and target.
        source: the float model; not changed.
        teacher: the dense model to distil from; None means post-training quantization.
        placement: what is quantized.
        finetuned: the dense model's dataset and augmentation.

    Raises:
        ToolchainError: the model cannot be exported, or training diverged.
    """
    recipe, target, dataset = job.recipe, job.target, finetuned.dataset
    requested_method: Literal["qat", "ptq"] = "ptq" if teacher is None else "qat"
    spec = recipe.quantize.train if requested_method == "qat" else dataclasses.replace(recipe.quantize.train, epochs=0)
    key = files.digest(
        VERSION, source.key, placement, target.scheme, spec, recipe.quantize.calibration,
        recipe.quantize.correction, finetuned.augment, recipe.balance, recipe.seed, dataset.calibration_rows,
    )  # fmt: skip
    graph, planned_layers = pt2e.prepare(source.model, dataset.example_input, placement, target.scheme)
    with stage_cache.open_stage(job.work, "quantize", key) as stage:
        if stage.record is None:
            started = time.monotonic()
            trials, findings = calibrate(graph, dataset, recipe.quantize)
            training_job = loop.TrainingJob(
                dataset=dataset, spec=spec, augment=finetuned.augment, seed=recipe.seed + 2, label="quantize",
                folder=stage.folder, balance=recipe.balance, teacher=teacher,
                before_phase=_observe_ranges_until(spec.epochs - 1),
            )  # fmt: skip
            training = loop.train(graph, training_job, keep_start=True)
            figures = {
                "planned": planned_layers,
                "starts": files.to_jsonable(trials),
                "findings": files.to_jsonable(findings),
            }
            trained = save_trained_model(stage, started, graph, training, figures)
        else:
            trained = load_trained_model(stage, graph)
    pt2e.configure_fake_quantize(graph, ranges=False, rounding=True)
    method: Literal["qat", "ptq"] = "qat" if trained.record["best_epoch"] >= 0 else "ptq"
    return QuantizedModel(trained, placement, planned_layers, method, requested_method)


def calibrate(
    graph: GraphModule, dataset: Dataset, spec: QuantizeSpec
) -> tuple[tuple[CalibrationTrial, ...], tuple[calibration_checks.Finding, ...]]:
    """Choose activation ranges from the calibration images and leave `graph` with the best trial's ranges and biases.

    The best trial is the one whose logits are closest to the float model's on validation: that takes no labels and
    separates methods that classify the same images correctly. The calibration method is chosen first, with the first
    correction; then the other corrections are tried with that method.

    Args:
        graph: as `pt2e.prepare` returns it; changed.
        dataset: its calibration images and its validation split are used.
        spec: which calibration and correction methods to try; "auto" means all.

    Returns:
        all trials, the best first, and the problems of the calibration.

    Raises:
        ToolchainError: there are no images, or a weight or value is not finite.
    """
    calibration_checks.check_weights(graph)
    validation = choose_validation_images(dataset)
    batches = [images for images, _ in loader.ordered_batches(dataset.calibration_images, dataset.preprocess, 64)]
    histograms = ranges.collect_histograms(graph, batches)
    float_logits = loop.predict(graph, validation, dataset.preprocess)
    correction_images = torch.cat(batches)[: count_correction_images(batches[0])]
    trials: list[tuple[CalibrationTrial, Mapping[str, Tensor]]] = []
    uncalibrated = copy.deepcopy(graph.state_dict())

    def attempt(method: CalibrationMethod, correction: CorrectionMethod) -> CalibrationTrial:
        graph.load_state_dict(uncalibrated)
        ranges.calibrate(graph, histograms, method)
        if correction != "none":
            bias_correction.correct_layers(graph, correction_images, match_std=correction == "norm")
        logits = loop.predict(graph, validation, dataset.preprocess)
        trial = score_calibration(method, correction, logits, float_logits, validation)
        trials.append((trial, copy.deepcopy(graph.state_dict())))
        return trial

    try_calibrations(spec, attempt)
    trials.sort(key=lambda trial_and_state: trial_and_state[0].divergence)
    graph.load_state_dict(trials[0][1])
    checked = loader.ordered_batches(_evenly_spaced(dataset.splits["val"], MAX_CHECKED_IMAGES), dataset.preprocess, 64)
    findings = calibration_checks.check(graph, batches, (images for images, _ in checked))
    return tuple(trial for trial, _ in trials), findings


def score_calibration(
    method: CalibrationMethod, correction: CorrectionMethod, logits: Tensor, float_logits: Tensor, validation: Images
) -> CalibrationTrial:
    """Return the trial of a calibration that gives `logits` [images, classes], against the float model's."""
    divergence = kl_divergence(logits, float_logits)
    return CalibrationTrial(method, correction, divergence, loop.score(logits, validation.labels).accuracy)


def try_calibrations(
    spec: QuantizeSpec, attempt: Callable[[CalibrationMethod, CorrectionMethod], CalibrationTrial]
) -> None:
    """Try the methods with the first correction, then the other corrections with the method that is closest to the float model.

    Args:
        spec: which calibration and correction methods to try; "auto" means all.
        attempt: quantizes one way and keeps the result.
    """
    methods = get_args(CalibrationMethod) if spec.calibration == "auto" else (spec.calibration,)
    corrections = get_args(CorrectionMethod) if spec.correction == "auto" else (spec.correction,)
    with progress.show_bar("quantize: calibration", len(methods) + len(corrections) - 1) as bar:

        def attempt_and_show(method: CalibrationMethod, correction: CorrectionMethod) -> CalibrationTrial:
            trial = attempt(method, correction)
            bar.step(f"{method} {trial.accuracy:.4f}")
            return trial

        trials = [attempt_and_show(method, corrections[0]) for method in methods]
        best_method = min(trials, key=lambda trial: trial.divergence).method
        for correction in corrections[1:]:
            attempt_and_show(best_method, correction)


def choose_validation_images(dataset: Dataset) -> Images:
    """Return the validation images that a calibration is chosen on."""
    return _evenly_spaced(dataset.splits["val"], MAX_CHOICE_IMAGES)


def count_correction_images(images: Tensor) -> int:
    """Return how many images of this size, [n, 3, height, width], bias correction takes."""
    return max(16, MAX_CORRECTION_PIXELS // (images.shape[2] * images.shape[3]))


def _evenly_spaced(images: Images, limit: int) -> Images:
    return images.select(range(0, len(images), -(-len(images) // limit)))


def kl_divergence(logits: Tensor, reference: Tensor) -> float:
    """Return the Kullback-Leibler divergence of logits [images, classes] from reference logits, in nats an image."""
    divergence = F.kl_div(logits.log_softmax(1), reference.log_softmax(1), reduction="batchmean", log_target=True)
    return max(0.0, float(divergence))  # negative only by rounding


def _observe_ranges_until(last_epoch: int) -> loop.PhaseHook:
    """Return a hook that observes ranges while training in every epoch before `last_epoch`, never while validating."""

    def switch(model: nn.Module, epoch: int, training: bool) -> None:
        pt2e.configure_fake_quantize(model, ranges=training and epoch < last_epoch, rounding=True)

    return switch


def notes(networks: Mapping[NetworkName, Network], placed: Mapping[NetworkName, PlacementResult]) -> list[str]:
    """Return the report's notes on networks that were quantized in another way than the recipe requests."""
    sentences = []
    for network in networks.values():
        quantized = network.quantized
        if quantized is None:
            continue
        placement = placed[network.name]
        if placement.float_wins and placement.fastest_int8 and placement.fastest_float:
            relative_speed = placement.fastest_int8.speedup / placement.fastest_float.speedup
            sentences.append(
                f"{network.name}: no int8 placement is as fast as {placement.fastest_float.precision} on this target (the "
                f"best of {len(placement.timed_placements)} has {relative_speed:.2f}x its speed), so it was calibrated, not trained"
            )
        if quantized.requested_method == "qat" and quantized.method == "ptq":
            sentences.append(
                f"{network.name}: quantization-aware training did not improve on calibration on the validation images, so "
                "the calibrated model was kept"
            )
    return sentences
