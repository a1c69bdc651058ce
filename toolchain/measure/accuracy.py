"""The verify step: accuracy, parity and int8 coverage of every exported variant, on the validation and the test split.

The images are read again from their original files with the functions that the bundle ships, so that a difference between
the pixels of training and those of inference shows here and not on the board.
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
from toolchain.edge import served_pixels
from toolchain.export.export_variants import ExportedVariant, Variant
from toolchain.export.runtime import load_runtime
from toolchain.measure import machine, torch_parity
from toolchain.measure.torch_parity import Parity, Predictions
from toolchain.quantization.quantize import Network
from toolchain.training import loop


@dataclass(frozen=True, kw_only=True)
class VariantAccuracy:
    """A variant's accuracy, parity and int8 coverage on one split; the images are read as the bundle reads them."""

    accuracy: Interval
    balanced: Interval
    drop: Interval  # from dense-fp32, paired over the same images; positive is worse
    balanced_drop: Interval
    disagreement: float  # share of images that exactly one of this variant and dense-fp32 classifies correctly
    parity: Parity
    coverage: IntegerCoverage | None  # None: this machine does not run the target's instructions


VERSION = 2
LOGITS_FILE = "logits.npz"


@dataclass(frozen=True, kw_only=True)
class Verification:
    """Predictions and accuracy of every variant, by its name."""

    predictions: Mapping[str, Mapping[Split, Predictions]]
    validation: Mapping[str, VariantAccuracy]  # to choose a variant by
    test: Mapping[str, VariantAccuracy]  # to report; no choice depends on it


def run(job: Job, exported: Sequence[ExportedVariant], networks: Mapping[NetworkName, Network]) -> Verification:
    """Run every variant, and the torch model that it was exported from, on the validation and the test split.

    Args:
        job: its target names the runtime, its work folder holds the stage cache.
        exported: the variants; the baseline, dense-fp32, is one of them.
        networks: the networks that they were exported from; each has the dataset in its own image size.

    Raises:
        ToolchainError: an image changed since it was decoded.
    """
    datasets = {network.name: network.dataset for network in networks.values()}
    pixels = {
        name: functools.cache(functools.partial(read_served_pixels, dataset)) for name, dataset in datasets.items()
    }
    variants = [entry.variant for entry in exported]
    predictions: dict[str, dict[Split, Predictions]] = {variant.name: {} for variant in variants}
    accuracy = {}
    splits: tuple[Split, ...] = ("val", "test")
    for split in splits:
        for entry in exported:
            name, network = entry.variant.name, entry.variant.network
            predictions[name][split] = predict(entry, job.target, datasets[network], split, pixels[network], job.work)
        labels = datasets["dense"].splits[split].labels
        of_split = {name: by_split[split] for name, by_split in predictions.items()}
        accuracy[split] = compare(variants, of_split, labels, job.target)
    return Verification(predictions=predictions, validation=accuracy["val"], test=accuracy["test"])


def read_served_pixels(dataset: Dataset, split: Split) -> np.ndarray:
    """Read a split's images from their files as the bundle's runner does: uint8 [images, height, width(, 3)].

    Raises:
        ToolchainError: they differ from the pixels of training.
    """
    images = dataset.splits[split]
    rows = []
    with progress.show_bar(f"verify: read original files of {split}", len(images)) as bar:
        for file in images.files:
            rows.append(served_pixels.read(file, dataset.preprocess))
            bar.step()
    served = np.stack(rows)
    if not np.array_equal(served, images.pixels.numpy()):
        changed = next(i for i in range(len(images)) if not np.array_equal(served[i], images.pixels[i].numpy()))
        raise ToolchainError(
            f"{images.files[changed]} changed since it was decoded. All stages need the same image: run the command again"
        )
    return served


def predict(
    exported: ExportedVariant,
    target: Target,
    dataset: Dataset,
    split: Split,
    read_pixels: Callable[[Split], np.ndarray],
    work: Path,
) -> Predictions:
    """Run a split through an artefact and through the torch model that it was exported from.

    Args:
        exported: the artefact and its torch model, float or fake-quantized.
        target: gives runtime and threads.
        dataset: the images in the network's size, for the torch model.
        split: "val", to choose a variant by, or "test", to report.
        read_pixels: gives the pixels of `read_served_pixels`; not called where the stage cache holds the logits.
        work: folder of the stage cache.
    """
    variant = exported.variant
    runtime = load_runtime(target.runtime)
    key = files.digest(
        VERSION, variant.artefact.sha256, variant.precision, dataset.digest, dataset.preprocess, runtime.fingerprint(),
        target.threads, machine.vector_extensions(), split,
    )  # fmt: skip
    with stage_cache.open_stage(work, "verify", key) as stage:
        if stage.record is None:
            started = time.monotonic()
            label = f"verify {variant.name} on {split}"
            session = runtime.open(variant.artefact.path, threads=target.threads, precision=variant.precision)
            logits = {"artefact": _run_images(session.run, read_pixels(split), dataset.preprocess, label)}
            logits["torch"] = loop.predict(exported.torch_model, dataset.splits[split], dataset.preprocess).numpy()
            if variant.precision == "int8" and runtime.HAS_UNOPTIMIZED:
                plain = runtime.open(variant.artefact.path, threads=target.threads, precision="int8", optimized=False)
                label = f"verify {variant.name} unoptimized on {split}"
                logits["unoptimized"] = _run_images(plain.run, read_pixels(split), dataset.preprocess, label)
            with files.open_atomic(stage.folder / LOGITS_FILE) as out:
                np.savez(out, allow_pickle=False, **logits)
            stage_cache.finish(stage, started, {})
        stored = np.load(stage.folder / LOGITS_FILE, allow_pickle=False)
        return Predictions(stored["artefact"], stored["torch"], stored.get("unoptimized"))


def _run_images(
    infer: Callable[[np.ndarray], np.ndarray], pixels: np.ndarray, preprocess: Preprocessing, label: str
) -> np.ndarray:
    """Run images one by one, as the bundle does; return the logits [images, classes]."""
    rows = []
    with progress.show_bar(label, len(pixels)) as bar:
        for image in pixels:
            rows.append(infer(runner.normalise(image, preprocess.mean, preprocess.std)[None])[0])
            bar.step()
    return np.stack(rows)


def compare(
    variants: Sequence[Variant], predictions: Mapping[str, Predictions], labels: torch.Tensor, target: Target
) -> dict[str, VariantAccuracy]:
    """Return the accuracy of every variant, by its name, and its drop from the baseline's over the same images.

    Args:
        variants: the baseline is one of them.
        predictions: on one split, by the variant's name.
        labels: of that split, int64 [images].
        target: gives the runtime whose int8 coverage is measured.
    """
    truth = labels.numpy()
    baseline_correct = predictions[BASELINE].artefact.argmax(1) == truth
    result = {}
    for variant in variants:
        logits = predictions[variant.name]
        correct = logits.artefact.argmax(1) == truth
        result[variant.name] = VariantAccuracy(
            accuracy=statistics.accuracy(correct),
            balanced=statistics.balanced_accuracy(correct, truth),
            drop=statistics.accuracy_drop(baseline_correct, correct),
            balanced_drop=statistics.balanced_drop(baseline_correct, correct, truth),
            disagreement=statistics.disagreement_share(baseline_correct, correct),
            parity=torch_parity.compare(logits, truth, variant.output_step, variant.precision),
            coverage=measure_coverage(variant, target),
        )
    return result


@functools.cache
def measure_coverage(variant: Variant, target: Target) -> IntegerCoverage | None:
    """Return the int8 coverage of the graph that the runtime executes, and how many layers were planned.

    None where this machine does not run the target's kernels.
    """
    if not machine.runs_same_kernels(target.isa):
        return None
    executed: IntegerCoverage = load_runtime(target.runtime).coverage(
        variant.artefact.path, precision=variant.precision
    )
    planned = len(variant.planned_layers) if variant.precision == "int8" else 0
    return IntegerCoverage(
        integer=executed.integer, planned=planned, total=executed.total, float_ops=executed.float_ops
    )
