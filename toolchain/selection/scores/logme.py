"""LogME on what the head is given (You et al., arXiv 2102.11005); how it is solved: `evidence.py`."""

from toolchain.models.frozen_features import FrozenFeatures, ScoreInput
from toolchain.selection import log_evidence

NEEDS: tuple[ScoreInput, ...] = ()


def score(train: FrozenFeatures, held: FrozenFeatures) -> float:
    """Mean over the classes of the logarithm of the evidence, per image; higher is better."""
    return log_evidence.compute(train.features, train.labels)
