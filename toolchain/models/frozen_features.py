"""Hold what transferability scores work on: a frozen model's outputs for a dataset's images, before any training."""

from dataclasses import dataclass
from typing import Literal

import numpy as np

from toolchain.core.errors import ToolchainError

ScoreInput = Literal["source"]  # what a score needs beside features and labels; its file lists them in NEEDS


@dataclass(frozen=True, kw_only=True)
class FrozenFeatures:
    """Features of some images from one frozen model."""

    features: np.ndarray  # float64 [images, features]: input of the head, feature maps averaged over their positions
    labels: np.ndarray  # int64 [images]: class indices in the domain
    block_features: tuple[np.ndarray, ...] = ()  # the same after every block, in order; `features` is the last
    # float64 [images, source classes]: softmax of the model's own head; None where the checkpoint has no head
    source_probabilities: np.ndarray | None = None


def subtract_mean(features: np.ndarray) -> np.ndarray:
    """Subtract the mean over images: float64 [images, features]."""
    return np.asarray(features - features.mean(0), dtype=np.float64)


def replace_by_class_means(features: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Replace the features of every image by the mean of its class: [images, features]."""
    means = np.zeros_like(features)
    for label in np.unique(labels):
        means[labels == label] = features[labels == label].mean(0)
    return means


def check_scorable(data: FrozenFeatures, min_images_per_class: int = 2) -> None:
    """Check that a transferability score can be computed.

    Raises:
        ToolchainError: one class only, a class with too few images, or features that are not finite.
    """
    labels, counts = np.unique(data.labels, return_counts=True)
    if len(labels) < 2:
        raise ToolchainError("all training images are of one class; a transferability score needs at least two classes")
    if counts.min() < min_images_per_class:
        raise ToolchainError(
            f"class number {labels[counts.argmin()]} has {counts.min()} training images; a transferability score needs at "
            f"least {min_images_per_class}"
        )
    if not np.isfinite(data.features).all():
        raise ToolchainError("features are not finite: the weights do not suit these images; choose other weights")
