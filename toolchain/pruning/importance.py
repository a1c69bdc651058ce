"""Importance of channels that can be compared between pruning groups, from the scores of a criterion.

Scores of different layers have different scales and units, and a criterion sees one group at a time. Importance is
therefore a share of a total, and shares can be added up over the network.
"""

from collections import defaultdict
from collections.abc import Callable, Hashable, Sequence
from typing import Literal

import torch
from torch import Tensor

from toolchain.core.errors import ToolchainError
from toolchain.pruning.groups import PruningGroup

Criterion = Callable[[PruningGroup], Tensor]  # score of each channel, at least 0, [channels]


def compute_shares(
    groups: Sequence[PruningGroup], criterion: Criterion, ranking: Literal["global", "isomorphic"]
) -> list[Tensor]:
    """Return the importance of each group's channels, float64 [channels] per group.

    Args:
        groups: the pruning groups to compare.
        criterion: scores the channels of one group.
        ranking: "global": the importances of every group add up to 1, so the criterion's scale does not decide between
            groups. "isomorphic": groups of the same structure are scaled by their mean total, so the criterion's scale
            decides among them, for example where one of several equal blocks does little. Groups of different
            structure, whose scores are not comparable, are compared by shares.

    Raises:
        ToolchainError: the criterion scores every channel of every group 0.

    Source: Isomorphic Pruning, Fang et al., arXiv 2407.04616. They prune the same share of each structure; here, all
        structures compete by importance lost for multiply-accumulates saved.
    """
    scores = [criterion(group).double() for group in groups]
    if scores and not any(bool(score.any()) for score in scores):
        raise ToolchainError(
            "the pruning criterion scores every channel 0, so it cannot rank them. Gradients vanish where the model is "
            'certain of every image: use a criterion that reads weights only ([prune] criterion = "magnitude")'
        )
    keys = [structure_key(group) if ranking == "isomorphic" else index for index, group in enumerate(groups)]
    totals: dict[Hashable, list[Tensor]] = defaultdict(list)
    for score, key in zip(scores, keys, strict=True):
        totals[key].append(score.sum())
    means = {key: torch.stack(key_totals).mean().clamp_min(1e-30) for key, key_totals in totals.items()}
    return [score / means[key] for score, key in zip(scores, keys, strict=True)]


def structure_key(group: PruningGroup) -> Hashable:
    """Return a key that groups of the same structure share: types and sides of the coupled layers, whatever the widths."""
    return tuple(sorted((layer.layer_type, layer.role) for layer in group.coupled_layers))
