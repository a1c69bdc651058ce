"""LogME on what the head is given (You et al., arXiv 2102.11005); how it is solved: `evidence.py`."""

from toolchain.models.frozen_features import Need, Seen
from toolchain.selection import logme

NEEDS: tuple[Need, ...] = ()


def score(train: Seen, held: Seen) -> float:
    """Mean over the classes of the logarithm of the evidence, per image; higher is better."""
    return logme.logme(train.features, train.labels)
