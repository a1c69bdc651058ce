"""L2 magnitude over the whole group: every weight that a channel would take along counts (DepGraph, arXiv 2301.12900)."""

import torch
from torch import Tensor

from toolchain.surgery import Group

NEEDS: tuple[str, ...] = ()  # weights only


def score(group: Group) -> Tensor:
    """Importance of each channel of the group, [channels]."""
    return torch.stack([member.weight.square().sum(1) for member in group.members]).sum(0).sqrt()
