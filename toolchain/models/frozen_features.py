"""What transferability scores look at: what a frozen model makes of a domain's images, before any training."""

from dataclasses import dataclass
from typing import Literal

import numpy as np

from toolchain.core.errors import ToolchainError

ScoreInput = Literal["source"]  # beside features and labels; a score's file lists them in NEEDS


@dataclass(frozen=True, kw_only=True)
class FrozenFeatures:
    """One set of images through one frozen model."""

    features: np.ndarray  # float64 [images, features]: what the head is given, maps averaged over their places
    labels: np.ndarray  # int64 [images]: the domain's classes
    block_features: tuple[np.ndarray, ...] = ()  # the same behind every block, in order, up to and with `features`
    source_probabilities: np.ndarray | None = (
        None  # float64 [images, source classes]: what its own head answers, as probabilities
    )

    @property
    def class_count(self) -> int:
        """Classes that occur."""
        return len(np.unique(self.labels))


def subtract_mean(features: np.ndarray) -> np.ndarray:
    """Features with their mean taken off."""
    return np.asarray(features - features.mean(0), dtype=np.float64)


def replace_by_class_means(features: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Every image's features replaced by the mean of its class, [images, features]."""
    found = np.zeros_like(features)
    for label in np.unique(labels):
        found[labels == label] = features[labels == label].mean(0)
    return found


def check_scorable(seen: FrozenFeatures, least_per_class: int = 2) -> None:
    """Asserts that there is something to tell apart.

    Raises:
        ToolchainError: one class only, a class with too few images, or features that are not finite.
    """
    names, counts = np.unique(seen.labels, return_counts=True)
    if len(names) < 2:
        raise ToolchainError("all images are of one class, so no score can tell how well classes come apart")
    if counts.min() < least_per_class:
        raise ToolchainError(
            f"class number {names[counts.argmin()]} has {counts.min()} training images; a score needs {least_per_class}"
        )
    if not np.isfinite(seen.features).all():
        raise ToolchainError("features are not finite; the weights do not suit these pictures")
