"""Linear probe: validation accuracy of a logistic regression on the frozen features.

Slower than the other scores, and the reference for them.
"""

from toolchain.models.frozen_features import FrozenFeatures, ScoreInput
from toolchain.training import linear_probe

NEEDS: tuple[ScoreInput, ...] = ()


def score(train: FrozenFeatures, validation: FrozenFeatures) -> float:
    """Return the share of the validation images that the probe predicts correctly, 0..1."""
    return linear_probe.fit_frozen(train, validation)[0].validation_score.accuracy
