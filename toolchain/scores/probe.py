"""A linear probe: accuracy on validation of a logistic regression on the frozen features. Slower, and the honest yardstick."""

import torch

from toolchain import probe
from toolchain.seen import Need, Seen

NEEDS: tuple[Need, ...] = ()


def score(train: Seen, held: Seen) -> float:
    """Share of the validation images that it gets right, 0..1."""
    known, other = (torch.from_numpy(seen.features).float() for seen in (train, held))
    labels, wanted = torch.from_numpy(train.labels), torch.from_numpy(held.labels)
    classes = int(max(labels.max(), wanted.max())) + 1
    return probe.best(known, labels, other, wanted, classes).validation.accuracy
