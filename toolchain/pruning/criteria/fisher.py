"""Second-order Taylor with the diagonal empirical Fisher as curvature: sum of w^2 E[g^2] / 2 over all a channel takes along.

Optimal Brain Damage's saliency (LeCun et al., NeurIPS 1989), whose Hessian diagonal is replaced by the mean over the
images of the squared gradient of each one's cross-entropy (Theis et al., arXiv 1801.05787).
"""

import torch
from torch import Tensor

from toolchain.pruning.groups import Need, PruningGroup

NEEDS: tuple[Need, ...] = ("gradients",)


def score(group: PruningGroup) -> Tensor:
    """Importance of each channel of the group, [channels]."""
    return torch.stack([(each.squared_gradient * each.value.square()).sum(1) for each in group.parameters]).sum(0) / 2
