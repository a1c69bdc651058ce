"""L1 magnitude (Li et al., arXiv 1608.08710), over every weight that a channel takes along and not one filter alone."""

import torch
from torch import Tensor

from toolchain.pruning.groups import Need, PruningGroup

NEEDS: tuple[Need, ...] = ()


def score(group: PruningGroup) -> Tensor:
    """Importance of each channel of the group, [channels]: the sum of its absolute weights."""
    return torch.stack([member.weight.abs().sum(1) for member in group.coupled_layers]).sum(0)
