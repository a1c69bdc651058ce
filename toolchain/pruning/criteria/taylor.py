"""First-order Taylor: the change of the loss when a channel is removed (Molchanov et al., arXiv 1906.10771).

For each coupled layer, |sum of gradient x parameter| over the channel's parameters there, bias and the scale and shift
of batch norm included: the gradient of the loss by a gate on the channel. The layers' changes are added. The paper
squares them; absolute values stay in units of the loss. Gradients are means over the images.
"""

import torch
from torch import Tensor

from toolchain.pruning.groups import CoupledLayer, Need, PruningGroup

NEEDS: tuple[Need, ...] = ("gradients",)


def score(group: PruningGroup) -> Tensor:
    """Return the importance of each channel of the group, [channels]."""
    return torch.stack([_gate(layer).abs() for layer in group.coupled_layers]).sum(0)


def _gate(layer: CoupledLayer) -> Tensor:
    """Return the gradient of the loss by a factor on each channel at this layer, [channels]."""
    return torch.stack([(parameter.gradient * parameter.value).sum(1) for parameter in layer.parameters]).sum(0)
