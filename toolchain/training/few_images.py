"""Adjustments of fine-tuning to small datasets, where it easily loses what pretraining gave.

More epochs where the images give too few steps; a linear probe, frozen batch-norm statistics and a low learning rate
where classes have few images; and a margin by which fine-tuning has to beat the probe.
"""

import dataclasses
import math

import torch

from toolchain.config.recipe import TrainSpec
from toolchain.core import progress
from toolchain.data.decoded_dataset import Dataset
from toolchain.training.training_state import Score

RARE_CLASS_IMAGES = 5  # training images; classes with fewer are named in the log
MOST_NAMED_CLASSES = 12  # in one message
FEW_IMAGES_PER_CLASS = 20  # training images; with fewer per class, a head on frozen features is hard to beat
FEW_IMAGES_RATE_FACTOR = 0.1  # on the learning rate, where images are few


def describe_rare_classes(dataset: Dataset) -> str:
    """Return the classes with too few training images, each with its count; empty where there are none."""
    counts = torch.bincount(dataset.splits["train"].labels, minlength=len(dataset.classes)).tolist()
    rare = [
        f"{name} ({count})" for name, count in zip(dataset.classes, counts, strict=True) if count < RARE_CLASS_IMAGES
    ]
    more = f" and {len(rare) - MOST_NAMED_CLASSES} more" if len(rare) > MOST_NAMED_CLASSES else ""
    return ", ".join(rare[:MOST_NAMED_CLASSES]) + more


def extend_epochs(spec: TrainSpec, images: int) -> TrainSpec:
    """Return the spec with as many epochs as give `least_steps` steps on this many images; 0 epochs stay 0."""
    needed = math.ceil(spec.least_steps / math.ceil(images / spec.batch_size))
    if not 0 < spec.epochs < needed:
        return spec
    progress.log(
        f"adapt: {needed} epochs instead of {spec.epochs}, because {images} training images give too few steps "
        f"(least_steps = {spec.least_steps})"
    )
    return dataclasses.replace(spec, epochs=needed)


def protect_pretraining(spec: TrainSpec, images_per_class: float) -> TrainSpec:
    """Return the spec with cautious settings where images per class are few.

    The head starts as a linear probe on the images and their mirrored copies, batch norm keeps its statistics, and the
    learning rate is lower.
    """
    if images_per_class >= FEW_IMAGES_PER_CLASS or spec.epochs == 0:
        return spec
    rate = spec.learning_rate * FEW_IMAGES_RATE_FACTOR
    progress.log(
        f"adapt: only {images_per_class:.0f} training images per class, so the head starts as a linear probe, batch norm "
        f"is frozen, and the learning rate is {rate:g} instead of {spec.learning_rate:g}"
    )
    return dataclasses.replace(spec, head_start="probe", freeze_epochs=0, freeze_norm=True, learning_rate=rate)


def margin_over_probe(probe: Score | None, spec: TrainSpec, dataset: Dataset) -> float:
    """Return the accuracy, 0..1, by which an epoch has to beat the probe that training starts from.

    It is one standard error of the probe's accuracy on validation, which the best of many epochs gains by chance; 0
    without a probe and on larger datasets.
    """
    if probe is None or not spec.freeze_norm:
        return 0.0
    return math.sqrt(probe.accuracy * (1 - probe.accuracy) / len(dataset.splits["val"]))
