"""Absolute batch-norm scale, summed over the group's norms (Network Slimming, Liu et al., arXiv 1708.06519).

Where a group has no batch norm, the L2 norm of the filters that produce a channel is used instead. Both are turned into
shares of their group before groups are compared, so the two units are never mixed.
"""

import torch
from torch import Tensor

from toolchain.pruning.groups import Need, PruningGroup

NEEDS: tuple[Need, ...] = ()


def score(group: PruningGroup) -> Tensor:
    """Return the importance of each channel of the group, [channels]."""
    norms = [layer.weight.abs().sum(1) for layer in group.coupled_layers if layer.layer_type == "norm"]
    filters = [layer.weight.norm(dim=1) for layer in group.coupled_layers if layer.role == "out"]
    return torch.stack(norms or filters).sum(0)
