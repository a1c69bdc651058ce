"""L1 magnitude (Li et al., arXiv 1608.08710), over all coupled layers instead of a single filter."""

import torch
from torch import Tensor

from toolchain.pruning.groups import Need, PruningGroup

NEEDS: tuple[Need, ...] = ()


def score(group: PruningGroup) -> Tensor:
    """Return the importance of each channel of the group, [channels]: the sum of its absolute weights."""
    return torch.stack([layer.weight.abs().sum(1) for layer in group.coupled_layers]).sum(0)
