"""Random importance, the control that any other criterion has to beat: the same for the same layer, whatever its weights."""

import zlib

import torch
from torch import Tensor

from toolchain.pruning.groups import Need, PruningGroup

NEEDS: tuple[Need, ...] = ()


def score(group: PruningGroup) -> Tensor:
    """Return the importance of each channel of the group, [channels], uniform in 0..1, seeded by the group's name."""
    return torch.rand(group.channels, generator=torch.Generator().manual_seed(zlib.crc32(group.name.encode())))
