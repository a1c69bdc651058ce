"""From a criterion's scores to importances that can be compared between groups of channels.

Scores of different layers have different scales and units, and a criterion knows only one group; what is added up over
the network is therefore a share.
"""

from collections import defaultdict
from collections.abc import Callable, Hashable, Sequence
from typing import Literal

import torch
from torch import Tensor

from toolchain.core.errors import ToolchainError
from toolchain.pruning.groups import PruningGroup

Criterion = Callable[[PruningGroup], Tensor]  # importance of each channel, not negative, [channels]


def compute_shares(
    found: Sequence[PruningGroup], criterion: Criterion, ranking: Literal["global", "isomorphic"]
) -> list[Tensor]:
    """Importance of each group's channels, float64 [channels] each.

    "global": every group's importances add up to 1; no criterion's scale decides between groups.
    "isomorphic": groups of one structure are scaled by their common mean total, so that among them the criterion's own
    scale decides, as in a row of equal blocks where one block does little; between structures, which are not
    comparable, only shares are (Isomorphic Pruning, Fang et al., arXiv 2407.04616; they cut the same share from each
    structure, here all meet again where importance is weighed against the multiply-accumulates saved).

    Raises:
        ToolchainError: the criterion gives 0 to every channel of every group.
    """
    scores = [criterion(group).double() for group in found]
    if scores and not any(bool(score.any()) for score in scores):
        raise ToolchainError(
            "the pruning criterion finds no channel worth anything, so it cannot choose: on images that a model answers "
            'without any doubt gradients vanish; choose one that looks at weights only ([prune] criterion = "magnitude")'
        )
    classes = [structure_key(group) if ranking == "isomorphic" else index for index, group in enumerate(found)]
    totals: dict[Hashable, list[Tensor]] = defaultdict(list)
    for score, name in zip(scores, classes, strict=True):
        totals[name].append(score.sum())
    means = {name: torch.stack(total).mean().clamp_min(1e-30) for name, total in totals.items()}
    return [score / means[name] for score, name in zip(scores, classes, strict=True)]


def structure_key(group: PruningGroup) -> Hashable:
    """What groups of one structure share: the kinds of layers that see them, and from which side; not their widths."""
    return tuple(sorted((member.layer_type, member.role) for member in group.coupled_layers))
