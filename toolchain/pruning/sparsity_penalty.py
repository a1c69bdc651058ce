"""A penalty that shrinks unimportant channels before any are pruned, so that pruning them loses less accuracy.

This is the sparse learning of DepGraph (Fang et al., arXiv 2301.12900, section 3.3). The squared norm of a channel is
taken over all layers that it would be removed from, as the magnitude criterion does, and the weakest channels of a group
are penalized most. So the coupled channels of a group become small together, which a penalty on single layers does not
achieve.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from toolchain.pruning.groups import ChannelRole, PruningGroup

PENALTY_EXPONENT = (
    4.0  # the weakest channel of a group is penalized 2 ** PENALTY_EXPONENT times as much as the strongest
)
WEAK_NORM_SHARE = 0.1  # of its group's mean norm; channels below it count as weak


def make_penalty(groups: Sequence[PruningGroup], strength: float) -> Callable[[nn.Module], Tensor]:
    """Return a function of a model with these groups that gives the loss term strength * sum of gamma_k * |w_k|^2.

    gamma_k = 2 ** (PENALTY_EXPONENT * (max - |w_k|^2) / (max - min)) over the channels of a group; it gets no gradient.
    """
    slices_by_group = [_weight_slices(group) for group in groups]

    def penalty(model: nn.Module) -> Tensor:
        names = {part.parameter for slices in slices_by_group for part in slices}
        squares = {name: model.get_parameter(name).square() for name in names}
        total = torch.zeros(())
        for slices in slices_by_group:
            norms = _squared_norms(slices, squares)
            total = total + (_channel_factors(norms.detach()) * norms).sum()
        return strength * total

    return penalty


def measure_weak_share(groups: Sequence[PruningGroup], model: nn.Module) -> float:
    """Return the share of channels whose norm is below a tenth of their group's mean norm, 0..1."""
    squares = {name: tensor.detach().square() for name, tensor in model.named_parameters()}
    norms = [_squared_norms(_weight_slices(group), squares).sqrt() for group in groups]
    weak = sum(int((norm < WEAK_NORM_SHARE * norm.mean()).sum()) for norm in norms)
    return weak / max(sum(len(norm) for norm in norms), 1)


@dataclass(frozen=True)
class _WeightSlice:
    """The indices of a group's channels in one weight tensor."""

    parameter: str
    role: ChannelRole
    indices: Tensor  # int64 [channels, indices per channel]


def _weight_slices(group: PruningGroup) -> list[_WeightSlice]:
    return [
        _WeightSlice(f"{layer.module_name}.weight", layer.role, torch.tensor(layer.channel_indices))
        for layer in group.coupled_layers
    ]


def _squared_norms(slices: Sequence[_WeightSlice], squares: dict[str, Tensor]) -> Tensor:
    """Return the squared norm of each channel over all coupled layers, [channels].

    Args:
        slices: where the group's channels are.
        squares: squared weights by parameter name.
    """
    norms = []
    for part in slices:
        square = squares[part.parameter]
        channel_dimension = 0 if part.role == "out" else 1
        others = [dimension for dimension in range(square.ndim) if dimension != channel_dimension]
        norms.append((square.sum(others) if others else square)[part.indices].sum(1))
    return torch.stack(norms).sum(0)


def _channel_factors(norms: Tensor) -> Tensor:
    """Return the factor gamma of each channel, [channels]; the same for all where they are equally strong."""
    strongest, weakest = norms.max(), norms.min()
    spread = (strongest - weakest).clamp_min(1e-30)
    return torch.exp2(PENALTY_EXPONENT * (strongest - norms) / spread)
