"""A linear probe: accuracy on validation of a logistic regression on the frozen features. Slower, and the honest yardstick."""

from toolchain import probe
from toolchain.seen import Need, Seen

NEEDS: tuple[Need, ...] = ()


def score(train: Seen, held: Seen) -> float:
    """Share of the validation images that it gets right, 0..1."""
    return probe.frozen(train, held)[0].validation.accuracy
