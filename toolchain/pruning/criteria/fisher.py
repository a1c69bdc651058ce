"""Second-order Taylor with the diagonal empirical Fisher as curvature: sum of w^2 E[g^2] / 2 over a channel's parameters.

This is the saliency of Optimal Brain Damage (LeCun et al., NeurIPS 1989). The diagonal of the Hessian is replaced by the
mean over the images of the squared gradient of each image's cross-entropy (Theis et al., arXiv 1801.05787).
"""

import torch
from torch import Tensor

from toolchain.pruning.groups import Need, PruningGroup

NEEDS: tuple[Need, ...] = ("gradients",)


def score(group: PruningGroup) -> Tensor:
    """Return the importance of each channel of the group, [channels]."""
    rows = [(parameter.squared_gradient * parameter.value.square()).sum(1) for parameter in group.parameters]
    return torch.stack(rows).sum(0) / 2
