"""Layer-adaptive magnitude (LAMP, Lee et al., arXiv 2010.07611), with channels of a group for weights of a layer.

Squared magnitude as a share of what would be left if all weaker channels were gone: the last ones to go become ever
more precious. Within a group it ranks as magnitude does; it decides differently between groups.
"""

import torch
from torch import Tensor

from toolchain.pruning.groups import Need, PruningGroup

NEEDS: tuple[Need, ...] = ()


def score(group: PruningGroup) -> Tensor:
    """Importance of each channel of the group, [channels], in 0..1; the strongest has 1."""
    squared = torch.stack([member.weight.square().sum(1) for member in group.coupled_layers]).sum(0)
    strongest_first = squared.argsort(descending=True, stable=True)
    left = squared[strongest_first].cumsum(0).clamp_min(1e-30)
    return torch.empty_like(squared).index_copy_(0, strongest_first, squared[strongest_first] / left)
