"""LogME on the features of all levels of the network at once, every level with the same weight.

Fine-tuning can use the features of any level, and all levels predict its accuracy better than the head's input alone. A
probe on the head's input prefers shallow cuts, which fine-tuning does not confirm. Both are measured in docs/results.md.

Source: Evci et al., "Head2Toe", arXiv 2201.03529.
"""

from toolchain.models.frozen_features import FrozenFeatures, ScoreInput
from toolchain.selection import log_evidence

NEEDS: tuple[ScoreInput, ...] = ()


def score(train: FrozenFeatures, validation: FrozenFeatures) -> float:
    """Return the mean over the classes of the log evidence per image; higher is better."""
    return log_evidence.compute_over_levels(train.block_features or (train.features,), train.labels)
