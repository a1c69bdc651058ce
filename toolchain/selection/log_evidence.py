"""LogME: how well a Bayesian linear model explains a domain's labels by features (You et al., arXiv 2102.11005).

Solved as the later version of its authors does it (arXiv 2110.10545): one singular value decomposition, then a fixed point
for each class. Where there are more features than images, that version drops part of the determinant and its values
cannot be compared between models of other widths; here it is whole, as in the first version.
"""

from collections.abc import Sequence

import numpy as np

MAX_ITERATIONS = 11
TOLERANCE = 1e-3  # relative change of the ratio at which the fixed point is reached
MIN_RELATIVE_VARIANCE = 1e-13  # of the largest squared singular value: rounding
DEVIATION_EPSILON = 1e-6  # of a feature that hardly changes
DIVISOR_EPSILON = 1e-5  # keeps a divisor above zero, as the authors have it


def compute(features: np.ndarray, labels: np.ndarray) -> float:
    """Mean over the classes of the logarithm of the evidence, per image; higher is better.

    Args:
        features: float64 [images, features].
        labels: [images].
    """
    left, variances = _axes(features)
    each = (labels[:, None] == np.unique(labels)).astype(float)
    projected = (left.T @ each).T
    found = [
        _evidence(own, total, variances, *features.shape) for own, total in zip(projected, each.sum(0), strict=True)
    ]
    return float(np.mean(found))


def compute_over_levels(levels: Sequence[np.ndarray], labels: np.ndarray) -> float:
    """The same on the features of several levels at once, each level with the same weight.

    Args:
        levels: of one network, float64 [images, features] each.
    """
    equal = [(level - level.mean(0)) / (level.std(0) + DEVIATION_EPSILON) / np.sqrt(level.shape[1]) for level in levels]
    return compute(np.concatenate(equal, axis=1), labels)


def _axes(features: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Left singular vectors [images, rank] and squared singular values [rank], from the smaller of both Gram matrices."""
    images, width = features.shape
    wide = width > images
    values, vectors = np.linalg.eigh(features @ features.T if wide else features.T @ features)
    kept = values > values[-1] * MIN_RELATIVE_VARIANCE
    values, vectors = values[kept], vectors[:, kept]
    return vectors if wide else features @ vectors / np.sqrt(values), values


def _evidence(projected: np.ndarray, total: float, variances: np.ndarray, images: int, width: int) -> float:
    """One class against the others.

    Args:
        projected: its 0/1 labels on the left singular vectors.
        total: squared length of these labels.
        variances: squared singular values.
    """
    squares = projected**2
    outside = total - squares.sum()  # what no combination of features reaches
    alpha = beta = 1.0
    length = rest = 0.0
    for _ in range(MAX_ITERATIONS):
        ratio = alpha / beta
        length = float((variances * squares / (ratio + variances) ** 2).sum())
        rest = float((squares / (1 + variances / ratio) ** 2).sum() + outside)
        used = float((variances / (variances + ratio)).sum())
        alpha, beta = used / (length + DIVISOR_EPSILON), (images - used) / (rest + DIVISOR_EPSILON)
        if abs(alpha / beta - ratio) <= TOLERANCE * ratio:
            break
    determinant = np.log(alpha + beta * variances).sum() + (width - len(variances)) * np.log(alpha)
    whole = width * np.log(alpha) + images * np.log(beta) - determinant - beta * rest - alpha * length
    return float(whole - images * np.log(2 * np.pi)) / 2 / images
