"""A linear probe: accuracy on validation of a logistic regression on the frozen features. Slower, and the honest yardstick."""

from toolchain.models.frozen_features import Need, Seen
from toolchain.training import linear_probe

NEEDS: tuple[Need, ...] = ()


def score(train: Seen, held: Seen) -> float:
    """Share of the validation images that it gets right, 0..1."""
    return linear_probe.frozen(train, held)[0].validation.accuracy
