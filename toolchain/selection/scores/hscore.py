"""H-score with a shrunk covariance (Ibrahim et al., arXiv 2110.06893; Ledoit and Wolf's shrinkage, J. Multivar. Anal. 88, 2004).

How much of the features' spread lies between the classes. The plain score grows with every feature that is added where
images are few.
"""

import numpy as np
from sklearn.covariance import ledoit_wolf

from toolchain.models.frozen_features import FrozenFeatures, ScoreInput, replace_by_class_means, subtract_mean

NEEDS: tuple[ScoreInput, ...] = ()


def score(train: FrozenFeatures, held: FrozenFeatures) -> float:
    """Trace of the inverse shrunk covariance times that of the class means; higher is better."""
    features = subtract_mean(train.features)
    shrunk, share = ledoit_wolf(features, assume_centered=True)
    means = subtract_mean(replace_by_class_means(features, train.labels))
    between = means.T @ means / (len(means) - 1)
    return float((1 - share) * np.trace(np.linalg.pinv(shrunk, hermitian=True) @ between))
