"""LogME on the features of all levels of the network at once, each level with the same weight.

Fine-tuning can use what any level offers, and features of all levels foretell its accuracy better than those before the head
alone (Evci et al., "Head2Toe", arXiv 2201.03529). A probe before the head prefers shallow cuts, which fine-tuning does not
bear out. Both measured: docs/results.md.
"""

from toolchain.models.frozen_features import FrozenFeatures, ScoreInput
from toolchain.selection import log_evidence

NEEDS: tuple[ScoreInput, ...] = ()


def score(train: FrozenFeatures, held: FrozenFeatures) -> float:
    """Mean over the classes of the logarithm of the evidence, per image; higher is better."""
    return log_evidence.compute_over_levels(train.block_features or (train.features,), train.labels)
