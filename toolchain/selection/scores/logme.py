"""LogME on the head's input; `log_evidence.py` says how it is solved.

Source: You et al., arXiv 2102.11005.
"""

from toolchain.models.frozen_features import FrozenFeatures, ScoreInput
from toolchain.selection import log_evidence

NEEDS: tuple[ScoreInput, ...] = ()


def score(train: FrozenFeatures, validation: FrozenFeatures) -> float:
    """Return the mean over the classes of the log evidence per image; higher is better."""
    return log_evidence.compute(train.features, train.labels)
