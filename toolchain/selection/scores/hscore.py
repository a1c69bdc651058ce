"""H-score with a shrunk covariance: how much of the spread of the features lies between the classes.

The plain score grows with every feature that is added when images are few; shrinkage prevents it.

Source: Ibrahim et al., arXiv 2110.06893; shrinkage by Ledoit and Wolf, J. Multivar. Anal. 88, 2004.
"""

import numpy as np
from sklearn.covariance import ledoit_wolf

from toolchain.models.frozen_features import FrozenFeatures, ScoreInput, replace_by_class_means, subtract_mean

NEEDS: tuple[ScoreInput, ...] = ()


def score(train: FrozenFeatures, validation: FrozenFeatures) -> float:
    """Return the trace of the inverse shrunk covariance times the covariance of the class means; higher is better."""
    features = subtract_mean(train.features)
    shrunk, shrinkage = ledoit_wolf(features, assume_centered=True)
    means = subtract_mean(replace_by_class_means(features, train.labels))
    between_classes = means.T @ means / (len(means) - 1)
    return float((1 - shrinkage) * np.trace(np.linalg.pinv(shrunk, hermitian=True) @ between_classes))
