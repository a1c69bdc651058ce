"""L2 magnitude over all coupled layers: every weight removed with a channel counts (DepGraph, Fang et al., arXiv 2301.12900)."""

import torch
from torch import Tensor

from toolchain.pruning.groups import Need, PruningGroup

NEEDS: tuple[Need, ...] = ()


def score(group: PruningGroup) -> Tensor:
    """Return the importance of each channel of the group, [channels]: the root of the sum of its squared weights."""
    return torch.stack([layer.weight.square().sum(1) for layer in group.coupled_layers]).sum(0).sqrt()
