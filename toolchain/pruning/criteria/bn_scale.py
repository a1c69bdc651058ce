"""Absolute batch-norm scale, summed over the group's norms (Network Slimming, Liu et al., arXiv 1708.06519).

Where a group has no batch norm, a channel's scale sits in the filters that produce it: their L2 norm stands in. Both
are shares of their group before groups are compared, so the two units never meet.
"""

import torch
from torch import Tensor

from toolchain.pruning.groups import Need, PruningGroup

NEEDS: tuple[Need, ...] = ()


def score(group: PruningGroup) -> Tensor:
    """Importance of each channel of the group, [channels]."""
    norms = [member.weight.abs().sum(1) for member in group.coupled_layers if member.layer_type == "norm"]
    filters = [member.weight.norm(dim=1) for member in group.coupled_layers if member.role == "out"]
    return torch.stack(norms or filters).sum(0)
