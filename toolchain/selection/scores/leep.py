"""LEEP: log-likelihood of the labels under what the source model's own classes say of them (Nguyen et al., arXiv 2002.12462).

Only for models whose own head is there.
"""

import numpy as np

from toolchain.models.frozen_features import FrozenFeatures, ScoreInput

NEEDS: tuple[ScoreInput, ...] = ("source",)


def score(train: FrozenFeatures, held: FrozenFeatures) -> float:
    """Mean log-likelihood in nats, at most 0; higher is better."""
    assert train.source_probabilities is not None
    joint = np.stack([train.source_probabilities[train.labels == label].sum(0) for label in np.unique(train.labels)])
    given = joint / np.maximum(joint.sum(0), np.finfo(float).tiny)  # of a class, given a class of the source
    numbers = np.searchsorted(np.unique(train.labels), train.labels)
    likelihoods = (train.source_probabilities * given[numbers]).sum(1)
    return float(np.log(np.maximum(likelihoods, np.finfo(float).tiny)).mean())
