"""Parity: does the artefact, in its runtime, compute what the torch model computes that it was exported from?

Differences are measured in quantization steps of the logits, because that is the scale of what quantization explains: values
on the edge of rounding fall to either side. Where the runtime can also run the graph unoptimized, the difference between
the two is the runtime's own; it is held against the same scale by itself, and the artefact is judged without it.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from toolchain.core import statistics
from toolchain.core.types import Interval, Precision

MIN_LOGIT_RANGE = 1e-6  # for logits that are all equal
RANGE_STEPS = 255  # the range of a float output is divided into as many steps as an int8 output has
# a prediction may change by rounding alone where torch's margin between the two classes is below this many steps. Changes in
# sound artefacts of real datasets had margins up to 12 steps in int8 and 38 in bf16 (docs/results.md)
EXPLAINED_STEPS: Mapping[Precision, float] = {"f32": 2.0, "int8": 16.0, "bf16": 64.0}


@dataclass(frozen=True)
class Predictions:
    """Logits [images, classes] of one variant on one split."""

    artefact: np.ndarray
    torch: np.ndarray
    unoptimized: np.ndarray | None  # of the same artefact without the runtime's optimizations


@dataclass(frozen=True, kw_only=True)
class LogitDifference:
    """How far two sets of logits over the same images are apart."""

    rms_steps: Interval  # root mean square of the difference of a logit, in steps
    changed_images: int  # another predicted class
    unexplained_images: int  # changed although the margin is larger than rounding explains


@dataclass(frozen=True, kw_only=True)
class Parity:
    """The artefact in its runtime compared with the torch model that it was exported from, on the same images."""

    top1_agreement: float  # share of images with the same predicted class
    max_steps: float  # largest difference of a logit, in quantization steps of the output
    step: float  # that step; of a float output: 1/255 of its range
    images: int
    accuracy_gap: float  # artefact minus torch
    runtime_agreement: float | None = None  # share of images with the same class, optimized and unoptimized graph
    gap: Interval  # accuracy drop from torch to artefact, paired; positive is worse
    artefact: LogitDifference  # from torch, without the runtime's own difference where that is known
    runtime: LogitDifference | None = (
        None  # optimized from unoptimized graph; None where the runtime has no unoptimized one
    )


def compare(predictions: Predictions, labels: np.ndarray, output_step: float | None, precision: Precision) -> Parity:
    """Compare the artefact's logits with the torch model's.

    Args:
        predictions: on one split.
        labels: int64 [images].
        output_step: quantization step of the logits; None where they are float.
        precision: of the artefact.
    """
    explained = EXPLAINED_STEPS[precision]
    served, trained = predictions.artefact.argmax(1), predictions.torch.argmax(1)
    step = quantization_step(predictions, output_step)
    plain = predictions.unoptimized
    return Parity(
        top1_agreement=float((served == trained).mean()),
        max_steps=float(np.abs(predictions.artefact - predictions.torch).max() / step),
        step=step,
        images=len(labels),
        accuracy_gap=float((served == labels).mean() - (trained == labels).mean()),
        runtime_agreement=None if plain is None else float((served == plain.argmax(1)).mean()),
        gap=statistics.accuracy_drop(trained == labels, served == labels),
        artefact=measure_difference(
            predictions.torch, predictions.artefact if plain is None else plain, step, explained
        ),
        runtime=None if plain is None else measure_difference(plain, predictions.artefact, step, explained),
    )


def quantization_step(predictions: Predictions, output_step: float | None) -> float:
    """Return the quantization step of the logits; of float logits, 1/255 of their range."""
    return output_step or max(float(np.ptp(predictions.torch)), MIN_LOGIT_RANGE) / RANGE_STEPS


def measure_difference(reference: np.ndarray, other: np.ndarray, step: float, explained: float) -> LogitDifference:
    """Measure the difference of two sets of logits over the same images.

    Args:
        reference, other: logits [images, classes].
        step: quantization step of the logits.
        explained: margin, in steps, below which rounding explains another prediction.
    """
    squares = (((other - reference) / step) ** 2).mean(1)  # [images]
    before, after = reference.argmax(1), other.argmax(1)
    rows = np.arange(len(reference))
    margins = (reference[rows, before] - reference[rows, after]) / step  # 0 where the prediction stays
    return LogitDifference(
        rms_steps=statistics.root_mean_square(squares),
        changed_images=int((before != after).sum()),
        unexplained_images=int((margins > explained).sum()),
    )
