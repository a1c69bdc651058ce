"""verify: artefact, torch model -> accuracy, parity and integer coverage, on validation and test.

Pictures are read again from their original files with the functions that travel in the bundle, so that a
difference between the pixels of training and of serving would show here and not on the device.
"""

import functools
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from toolchain.config.job import Job
from toolchain.config.target import Target
from toolchain.core import files, progress, stage_cache, statistics
from toolchain.core.errors import ToolchainError
from toolchain.core.run_report import BASELINE
from toolchain.core.types import IntegerCoverage, Interval, NetworkName, Preprocessing
from toolchain.data.decoded_dataset import Dataset
from toolchain.data.splits import Split
from toolchain.edge import run as runner
from toolchain.export.export_variants import ExportedVariant, Variant
from toolchain.export.runtime import load_runtime
from toolchain.measure import machine
from toolchain.quantization.quantize import Network
from toolchain.training import loop


@dataclass(frozen=True, kw_only=True)
class Parity:
    """The artefact in its runtime against the torch model it came from, over the same images."""

    top1_agreement: float
    max_steps: float  # largest logit difference, in quantization steps of the output
    step: float  # that step; of a float output: the 255th part of its range
    images: int
    accuracy_gap: float  # artefact minus torch
    runtime_agreement: float | None = None  # the runtime's own optimized against unoptimized graph


@dataclass(frozen=True, kw_only=True)
class VariantAccuracy:
    """A variant's answers on the test split, from the original files through the bundle's own preprocessing."""

    accuracy: Interval
    balanced: Interval
    drop: Interval  # against dense-fp32, paired over the same images; positive is worse
    balanced_drop: Interval
    disagreement: float  # share of images on which exactly one of this and dense-fp32 is right
    parity: Parity
    coverage: IntegerCoverage | None  # None: this machine does not run the target's instructions


VERSION = 2
LOGITS_FILE = "logits.npz"
MIN_LOGIT_RANGE = 1e-6  # of answers that are all the same
RANGE_STEPS = 255  # a float output is judged in the steps it would have if it were quantized


@dataclass(frozen=True)
class Predictions:
    """Logits [images, classes] of one variant on one split."""

    artefact: np.ndarray
    torch: np.ndarray
    unoptimized: np.ndarray | None  # the same artefact with the runtime's optimizations off


def read_served_pixels(data: Dataset, split: Split) -> np.ndarray:
    """A split's pictures as the bundle's runner reads them: uint8 [images, height, width(, 3)].

    Raises:
        ToolchainError: they are not the pixels that were trained on.
    """
    images = data.splits[split]
    rows = []
    with progress.show_bar(f"verify: read original files of {split}", len(images)) as bar:
        for file in images.files:
            rows.append(runner.fit_size(runner.read_image(file, data.preprocess.mode), data.preprocess.image_size))
            bar.step()
    served = np.stack(rows)
    if not np.array_equal(served, images.pixels.numpy()):
        odd = next(i for i in range(len(images)) if not np.array_equal(served[i], images.pixels[i].numpy()))
        raise ToolchainError(
            f"{images.files[odd]} changed since it was decoded; start again, so that all stages see one picture"
        )
    return served


@dataclass(frozen=True, kw_only=True)
class Verification:
    """Predictions and accuracy of every variant, by its name."""

    predictions: Mapping[str, Mapping[Split, Predictions]]
    validation: Mapping[str, VariantAccuracy]  # to choose by
    test: Mapping[str, VariantAccuracy]  # to report, which no choice has seen


def run(job: Job, exported: Sequence[ExportedVariant], networks: Mapping[NetworkName, Network]) -> Verification:
    """Run every variant and the torch model it came from on validation and on test.

    Raises:
        ToolchainError: an image changed since it was decoded.
    """
    datasets = {network.name: network.dataset for network in networks.values()}
    pixels = {name: functools.cache(functools.partial(read_served_pixels, data)) for name, data in datasets.items()}
    predictions: dict[str, dict[Split, Predictions]] = {one.variant.name: {} for one in exported}
    accuracy = {}
    splits: tuple[Split, ...] = ("val", "test")
    for split in splits:
        for one in exported:
            name, family = one.variant.name, one.variant.network
            predictions[name][split] = predict(one, job.target, datasets[family], split, pixels[family], job.work)
        labels = datasets["dense"].splits[split].labels
        variants = [one.variant for one in exported]
        accuracy[split] = compare(variants, {name: own[split] for name, own in predictions.items()}, labels, job.target)
    return Verification(predictions=predictions, validation=accuracy["val"], test=accuracy["test"])


def predict(
    built: ExportedVariant,
    target: Target,
    data: Dataset,
    split: Split,
    served: Callable[[Split], np.ndarray],
    work: Path,
) -> Predictions:
    """Runs a split through the artefact and through the torch model it came from.

    Args:
        built: the artefact beside its torch model, float or fake-quantized.
        split: validation, to choose by, or test, to report.
        served: gives the pixels of `served_pixels`; called only where there is something to run.
    """
    variant = built.variant
    runtime = load_runtime(target.runtime)
    key = files.digest(
        VERSION, variant.artefact.sha256, variant.precision, data.digest, data.preprocess, runtime.fingerprint(),
        target.threads, machine.vector_extensions(), split,
    )  # fmt: skip
    with stage_cache.open_stage(work, "verify", key) as stage:
        if stage.record is None:
            started = time.monotonic()
            session = runtime.open(variant.artefact.path, threads=target.threads, precision=variant.precision)
            found = {"artefact": _run(session.run, served(split), data.preprocess, f"verify {variant.name} on {split}")}
            found["torch"] = loop.predict(built.torch_model, data.splits[split], data.preprocess).numpy()
            if variant.precision == "int8" and runtime.HAS_UNOPTIMIZED:
                plain = runtime.open(variant.artefact.path, threads=target.threads, precision="int8", optimized=False)
                found["unoptimized"] = _run(
                    plain.run, served(split), data.preprocess, f"verify {variant.name} unoptimized on {split}"
                )
            with files.open_atomic(stage.folder / LOGITS_FILE) as out:
                np.savez(out, allow_pickle=False, **found)
            stage_cache.finish(stage, started, {})
        kept = np.load(stage.folder / LOGITS_FILE, allow_pickle=False)
        return Predictions(kept["artefact"], kept["torch"], kept.get("unoptimized"))


def _run(
    run: Callable[[np.ndarray], np.ndarray], pixels: np.ndarray, preprocess: Preprocessing, label: str
) -> np.ndarray:
    rows = []
    with progress.show_bar(label, len(pixels)) as bar:
        for picture in pixels:
            rows.append(run(runner.normalise(picture, preprocess.mean, preprocess.std)[None])[0])
            bar.step()
    return np.stack(rows)


def compare(
    variants: Sequence[Variant], answers: Mapping[str, Predictions], labels: torch.Tensor, target: Target
) -> dict[str, VariantAccuracy]:
    """Return the accuracy of every variant, paired with the baseline's."""
    truth = labels.numpy()
    reference = answers[BASELINE].artefact.argmax(1) == truth
    result = {}
    for variant in variants:
        answer = answers[variant.name]
        correct = answer.artefact.argmax(1) == truth
        result[variant.name] = VariantAccuracy(
            accuracy=statistics.accuracy(correct),
            balanced=statistics.balanced_accuracy(correct, truth),
            drop=statistics.accuracy_drop(reference, correct),
            balanced_drop=statistics.balanced_drop(reference, correct, truth),
            disagreement=statistics.disagreement_share(reference, correct),
            parity=compare_with_torch(variant, answer, truth),
            coverage=measure_coverage(variant, target),
        )
    return result


def quantization_step(variant: Variant, answer: Predictions) -> float:
    """The quantization step of the logits; of float ones the 255th part of their range."""
    return variant.output_step or max(float(np.ptp(answer.torch)), MIN_LOGIT_RANGE) / RANGE_STEPS


def compare_with_torch(variant: Variant, answer: Predictions, truth: np.ndarray) -> Parity:
    """How far the artefact's answers are from the torch model's."""
    served, trained = answer.artefact.argmax(1), answer.torch.argmax(1)
    step = quantization_step(variant, answer)
    return Parity(
        top1_agreement=float((served == trained).mean()),
        max_steps=float(np.abs(answer.artefact - answer.torch).max() / step),
        step=step,
        images=len(truth),
        accuracy_gap=float((served == truth).mean() - (trained == truth).mean()),
        runtime_agreement=None
        if answer.unoptimized is None
        else float((served == answer.unoptimized.argmax(1)).mean()),
    )


@functools.cache
def measure_coverage(variant: Variant, target: Target) -> IntegerCoverage | None:
    """Integer coverage as the runtime executes it, with the number that was planned; None: not on this machine."""
    if not machine.runs_same_kernels(target.isa):
        return None
    runtime = load_runtime(target.runtime)
    found: IntegerCoverage = runtime.coverage(variant.artefact.path, precision=variant.precision)
    planned = len(variant.planned_layers) if variant.precision == "int8" else 0
    return IntegerCoverage(integer=found.integer, planned=planned, total=found.total, float_ops=found.float_ops)
