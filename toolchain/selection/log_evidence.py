"""LogME: how well a Bayesian linear model on the features explains a domain's labels.

Solved as in the authors' later version: one singular value decomposition, then a fixed point for each class. Where there
are more features than images, that version drops part of the determinant, so its values cannot be compared between models
of different widths; here the determinant is complete, as in the first version.

Source: You et al., arXiv 2102.11005; the later version, arXiv 2110.10545.
"""

from collections.abc import Sequence

import numpy as np

MAX_ITERATIONS = 11
TOLERANCE = 1e-3  # relative change of the ratio at which the fixed point is reached
MIN_RELATIVE_VARIANCE = 1e-13  # of the largest squared singular value; smaller ones are rounding errors
DEVIATION_EPSILON = 1e-6  # added to a feature's standard deviation, which may be almost 0
DIVISOR_EPSILON = 1e-5  # keeps a divisor above zero, as in the authors' code


def compute(features: np.ndarray, labels: np.ndarray) -> float:
    """Return the mean over the classes of the log evidence per image; higher is better.

    Args:
        features: float64 [images, features].
        labels: class numbers, [images].
    """
    left, variances = _decompose(features)
    one_hot = (labels[:, None] == np.unique(labels)).astype(float)
    projections = (left.T @ one_hot).T
    evidences = [
        _compute_class_evidence(projected, total, variances, *features.shape)
        for projected, total in zip(projections, one_hot.sum(0), strict=True)
    ]
    return float(np.mean(evidences))


def compute_over_levels(levels: Sequence[np.ndarray], labels: np.ndarray) -> float:
    """Return the log evidence on the features of several levels at once, every level with the same weight.

    Args:
        levels: features of one network after each block, float64 [images, features] each.
        labels: class numbers, [images].
    """
    scaled = [
        (level - level.mean(0)) / (level.std(0) + DEVIATION_EPSILON) / np.sqrt(level.shape[1]) for level in levels
    ]
    return compute(np.concatenate(scaled, axis=1), labels)


def _decompose(features: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return left singular vectors [images, rank] and squared singular values [rank], from the smaller Gram matrix."""
    images, width = features.shape
    wide = width > images
    values, vectors = np.linalg.eigh(features @ features.T if wide else features.T @ features)
    kept = values > values[-1] * MIN_RELATIVE_VARIANCE
    values, vectors = values[kept], vectors[:, kept]
    return vectors if wide else features @ vectors / np.sqrt(values), values


def _compute_class_evidence(
    projected: np.ndarray, total: float, variances: np.ndarray, images: int, width: int
) -> float:
    """Return the log evidence per image of one class against the others.

    Args:
        projected: its 0/1 labels projected on the left singular vectors, [rank].
        total: squared length of these labels.
        variances: squared singular values, [rank].
        images: number of images.
        width: number of features.
    """
    squares = projected**2
    unexplained = total - squares.sum()  # outside the span of the features
    alpha = beta = 1.0
    squared_weights = squared_error = 0.0
    for _ in range(MAX_ITERATIONS):
        ratio = alpha / beta
        squared_weights = float((variances * squares / (ratio + variances) ** 2).sum())
        squared_error = float((squares / (1 + variances / ratio) ** 2).sum() + unexplained)
        effective_dimensions = float((variances / (variances + ratio)).sum())
        alpha = effective_dimensions / (squared_weights + DIVISOR_EPSILON)
        beta = (images - effective_dimensions) / (squared_error + DIVISOR_EPSILON)
        if abs(alpha / beta - ratio) <= TOLERANCE * ratio:
            break
    log_determinant = np.log(alpha + beta * variances).sum() + (width - len(variances)) * np.log(alpha)
    twice_evidence = (
        width * np.log(alpha) + images * np.log(beta) - log_determinant - beta * squared_error - alpha * squared_weights
    )
    return float(twice_evidence - images * np.log(2 * np.pi)) / 2 / images
