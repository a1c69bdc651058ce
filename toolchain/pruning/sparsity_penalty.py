"""A penalty that makes unimportant channels small before any are cut, so that cutting them loses less.

Sparse learning of DepGraph (Fang et al., arXiv 2301.12900, section 3.3): the squared norm of a channel is taken over all
layers that it would be cut from, as ranking by magnitude takes it, and the weakest channels of a group are pressed the
hardest. Channels that go together so become small together, which a penalty on single layers does not bring about.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from toolchain.pruning.groups import ChannelRole, PruningGroup

PENALTY_EXPONENT = 4.0  # the weakest channel of a group is pressed 2 ** ALPHA times as hard as the strongest
WEAK_NORM_SHARE = 0.1  # of its group's mean norm


def make_penalty(found: Sequence[PruningGroup], strength: float) -> Callable[[nn.Module], Tensor]:
    """The penalty as a term of the loss of a model that has these groups: strength * sum of gamma_k * |w_k|^2.

    gamma_k = 2 ** (ALPHA * (max - |w_k|^2) / (max - min)) over a group's channels; no gradient goes through it.
    """
    slots = [_slots(group) for group in found]

    def term(model: nn.Module) -> Tensor:
        squares = {name: model.get_parameter(name).square() for name in {slot.tensor for row in slots for slot in row}}
        total = torch.zeros(())
        for row in slots:
            norms = _norms(row, squares)
            total = total + (_pressure(norms.detach()) * norms).sum()
        return strength * total

    return term


def measure_weak_share(found: Sequence[PruningGroup], model: nn.Module) -> float:
    """Share of the channels that are under a tenth of their group's mean norm."""
    squares = {name: tensor.detach().square() for name, tensor in model.named_parameters()}
    norms = [_norms(_slots(group), squares).sqrt() for group in found]
    small = sum(int((norm < WEAK_NORM_SHARE * norm.mean()).sum()) for norm in norms)
    return small / max(sum(len(norm) for norm in norms), 1)


@dataclass(frozen=True)
class _Slot:
    """Where in a weight a group's channels are."""

    tensor: str
    side: ChannelRole
    rows: Tensor  # int64 [channels, indices of each]


def _slots(group: PruningGroup) -> list[_Slot]:
    return [_Slot(f"{m.module_name}.weight", m.role, torch.tensor(m.channel_indices)) for m in group.coupled_layers]


def _norms(slots: Sequence[_Slot], squares: dict[str, Tensor]) -> Tensor:
    """Squared norm of each channel over all layers that see it, [channels]."""
    norms = []
    for slot in slots:
        square = squares[slot.tensor]
        kept = 0 if slot.side == "out" else 1
        others = [dimension for dimension in range(square.ndim) if dimension != kept]
        norms.append((square.sum(others) if others else square)[slot.rows].sum(1))
    return torch.stack(norms).sum(0)


def _pressure(norms: Tensor) -> Tensor:
    """How hard each channel is pressed; all alike where they are equally strong."""
    strongest, weakest = norms.max(), norms.min()
    spread = (strongest - weakest).clamp_min(1e-30)
    return torch.exp2(PENALTY_EXPONENT * (strongest - norms) / spread)
