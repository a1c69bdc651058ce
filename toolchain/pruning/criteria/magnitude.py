"""L2 magnitude over the whole group: every weight that a channel would take along counts (DepGraph, arXiv 2301.12900)."""

import torch
from torch import Tensor

from toolchain.pruning.groups import Need, PruningGroup

NEEDS: tuple[Need, ...] = ()


def score(group: PruningGroup) -> Tensor:
    """Importance of each channel of the group, [channels]: the root of the sum of its squared weights."""
    return torch.stack([member.weight.square().sum(1) for member in group.coupled_layers]).sum(0).sqrt()
