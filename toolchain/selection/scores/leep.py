"""LEEP: log-likelihood of the labels given the source model's predictions of its own classes.

Only for checkpoints that have a head.

Source: Nguyen et al., arXiv 2002.12462.
"""

import numpy as np

from toolchain.models.frozen_features import FrozenFeatures, ScoreInput

NEEDS: tuple[ScoreInput, ...] = ("source",)


def score(train: FrozenFeatures, validation: FrozenFeatures) -> float:
    """Return the mean log-likelihood in nats, at most 0; higher is better."""
    assert train.source_probabilities is not None
    joint = np.stack([train.source_probabilities[train.labels == label].sum(0) for label in np.unique(train.labels)])
    conditional = joint / np.maximum(joint.sum(0), np.finfo(float).tiny)  # P(class | source class)
    class_rows = np.searchsorted(np.unique(train.labels), train.labels)
    likelihoods = (train.source_probabilities * conditional[class_rows]).sum(1)
    return float(np.log(np.maximum(likelihoods, np.finfo(float).tiny)).mean())
