"""A linear probe: accuracy on validation of a logistic regression on the frozen features. Slower, and the honest yardstick."""

from toolchain.models.frozen_features import FrozenFeatures, ScoreInput
from toolchain.training import linear_probe

NEEDS: tuple[ScoreInput, ...] = ()


def score(train: FrozenFeatures, held: FrozenFeatures) -> float:
    """Share of the validation images that it gets right, 0..1."""
    return linear_probe.fit_frozen(train, held)[0].validation_score.accuracy
