"""Layer-adaptive magnitude (LAMP, Lee et al., arXiv 2010.07611), for the channels of a group in place of a layer's weights.

The squared magnitude is divided by the sum over all channels that are at least as strong, so the fewer channels remain,
the more important each is. Within a group the order is that of magnitude; between groups it decides differently.
"""

import torch
from torch import Tensor

from toolchain.pruning.groups import Need, PruningGroup

NEEDS: tuple[Need, ...] = ()


def score(group: PruningGroup) -> Tensor:
    """Return the importance of each channel of the group, [channels], in 0..1; 1 for the strongest."""
    squared = torch.stack([layer.weight.square().sum(1) for layer in group.coupled_layers]).sum(0)
    strongest_first = squared.argsort(descending=True, stable=True)
    remaining = squared[strongest_first].cumsum(0).clamp_min(1e-30)
    return torch.empty_like(squared).index_copy_(0, strongest_first, squared[strongest_first] / remaining)
