"""First-order Taylor: how much the loss would change without a channel (Molchanov et al., arXiv 1906.10771).

For each layer that sees the channel, |sum of gradient x parameter| over all it takes along, bias and the scale and
shift of batch norm included: the gradient of the loss by a gate on the channel there. The layers' changes are added.
The paper squares them; absolute values stay in units of the loss. Gradients are means over the images.
"""

import torch
from torch import Tensor

from toolchain.pruning.groups import CoupledLayer, Need, PruningGroup

NEEDS: tuple[Need, ...] = ("gradients",)


def score(group: PruningGroup) -> Tensor:
    """Importance of each channel of the group, [channels]."""
    return torch.stack([_gate(member).abs() for member in group.coupled_layers]).sum(0)


def _gate(member: CoupledLayer) -> Tensor:
    """Gradient of the loss by a factor on each channel at this layer, [channels]."""
    return torch.stack([(each.gradient * each.value).sum(1) for each in member.parameters]).sum(0)
