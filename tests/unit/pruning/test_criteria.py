"""Criteria against references that know nothing of groups: loops over the state dict, gates in hooks, image by image."""

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import NamedTuple

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from toolchain.config.recipe import PruneSpec
from toolchain.core import registry
from toolchain.core.errors import ToolchainError
from toolchain.models import profile
from toolchain.pruning import gradients, groups, importance, search_space, surgery
from toolchain.pruning.criteria import bn_scale, fisher, l1, lamp, magnitude, random, taylor
from toolchain.pruning.gradients import GradientMoments
from toolchain.pruning.groups import ChannelRole, PruningGroup


class Net(nn.Module):
    """Residual, depthwise, concatenation with a norm behind it, grouped convolution and flatten in one."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(8)
        self.inner = nn.Conv2d(8, 6, 1, bias=False)
        self.inner_norm = nn.BatchNorm2d(6)
        self.depthwise = nn.Conv2d(6, 6, 3, padding=1, groups=6)
        self.depthwise_norm = nn.BatchNorm2d(6)
        self.back = nn.Conv2d(6, 8, 1, bias=False)
        self.back_norm = nn.BatchNorm2d(8)
        self.left = nn.Conv2d(8, 4, 1)
        self.right = nn.Conv2d(8, 5, 3, padding=1)
        self.both_norm = nn.BatchNorm2d(9)
        self.mix = nn.Conv2d(9, 8, 1)
        self.grouped = nn.Conv2d(8, 8, 3, padding=1, groups=2)
        self.after = nn.Conv2d(8, 6, 1)
        self.head = nn.Linear(6 * 16, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.norm(self.stem(x)))
        y = F.hardswish(self.depthwise_norm(self.depthwise(F.hardswish(self.inner_norm(self.inner(x))))))
        x = x + self.back_norm(self.back(y))
        x = torch.relu(self.both_norm(torch.cat([self.left(x), self.right(x)], 1)))
        x = torch.relu(self.after(torch.relu(self.grouped(torch.relu(self.mix(x))))))
        return self.head(x.flatten(1))


class Place(NamedTuple):
    """Where a group's channels are in one layer: channel c is at (first + c) * each, and `each` long."""

    module: str
    side: ChannelRole
    first: int = 0
    each: int = 1


# by hand, from the forward pass above; what goes into and comes out of `grouped` stays whole
PLACES: Mapping[str, tuple[Place, ...]] = {
    "stem": (
        Place("stem", "out"), Place("norm", "out"), Place("inner", "in"), Place("back", "out"),
        Place("back_norm", "out"), Place("left", "in"), Place("right", "in"),
    ),
    "inner": (
        Place("inner", "out"), Place("inner_norm", "out"), Place("depthwise", "out"), Place("depthwise_norm", "out"),
        Place("back", "in"),
    ),
    "left": (Place("left", "out"), Place("both_norm", "out"), Place("mix", "in")),
    "right": (Place("right", "out"), Place("both_norm", "out", 4), Place("mix", "in", 4)),
    "after": (Place("after", "out"), Place("head", "in", 0, 16)),
}  # fmt: skip
CHANNELS = {"stem": 8, "inner": 6, "left": 4, "right": 5, "after": 6}
IMAGE = torch.zeros(1, 3, 4, 4)


@pytest.fixture(scope="module")
def net() -> nn.Module:
    torch.manual_seed(0)
    model = Net()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.weight, 0.5, 0.7)  # some scales below zero
            nn.init.normal_(module.bias)
            module.running_mean.normal_()
            module.running_var.uniform_(0.3, 3)
    return model.eval()


@pytest.fixture(scope="module")
def batches() -> list[tuple[Tensor, Tensor]]:
    torch.manual_seed(1)
    images, labels = torch.randn(11, 3, 4, 4), torch.randint(3, (11,))
    return [(images[:8], labels[:8]), (images[8:], labels[8:])]  # not of one size


@pytest.fixture(scope="module")
def collected(net: nn.Module, batches: list[tuple[Tensor, Tensor]]) -> Mapping[str, GradientMoments]:
    return gradients.collect(net, batches)


@pytest.fixture(scope="module")
def pruning_groups(net: nn.Module, collected: Mapping[str, GradientMoments]) -> dict[str, PruningGroup]:
    """By the first layer, in the order of the forward pass, that produces the group's channels."""
    order = [name for name, _ in net.named_modules()]
    read = groups.find(net, IMAGE, "head", collected)
    return {
        min((m.module_name for m in group.coupled_layers if m.role == "out"), key=order.index): group for group in read
    }


@contextmanager
def gated(net: nn.Module, place: Place, gate: Tensor) -> Iterator[None]:
    """Multiplies the place's channels by `gate`, one factor a channel of the group."""

    def through(x: Tensor) -> Tensor:
        factors = torch.ones(x.shape[1])
        start = place.first * place.each
        factors = torch.cat([factors[:start], gate.repeat_interleave(place.each), factors[start:]])[: x.shape[1]]
        return x * factors.view(1, -1, *[1] * (x.ndim - 2))

    module = net.get_submodule(place.module)
    if place.side == "out":
        handle = module.register_forward_hook(lambda _, __, output: through(output))
    else:
        handle = module.register_forward_pre_hook(lambda _, given: (through(given[0]),))
    yield
    handle.remove()


def values(net: nn.Module, place: Place, kind: str, channel: int) -> Tensor:
    """What of one tensor belongs to a channel, cut out by hand."""
    tensor = net.state_dict(keep_vars=True)[f"{place.module}.{kind}"]
    rows = slice((place.first + channel) * place.each, (place.first + channel + 1) * place.each)
    return (tensor[rows] if place.side == "out" else tensor[:, rows]).flatten()


def by_hand(name: str, of: Callable[[int], Tensor]) -> Tensor:
    return torch.stack([of(channel) for channel in range(CHANNELS[name])])


def weights(net: nn.Module, name: str, channel: int) -> Tensor:
    return torch.cat([values(net, place, "weight", channel) for place in PLACES[name]]).detach()


def test_groups_are_those_of_the_forward_pass_and_none_touches_the_grouped_convolution(
    pruning_groups: dict[str, PruningGroup],
) -> None:
    seen = {name: {(m.module_name, m.role) for m in group.coupled_layers} for name, group in pruning_groups.items()}
    assert seen == {name: {place[:2] for place in places} for name, places in PLACES.items()}
    assert {name: group.channels for name, group in pruning_groups.items()} == CHANNELS
    assert not any("grouped" in {m.module_name for m in group.coupled_layers} for group in pruning_groups.values())


@pytest.mark.parametrize("name", PLACES)
def test_magnitudes_are_sums_over_all_weights_that_go(
    name: str, net: nn.Module, pruning_groups: dict[str, PruningGroup]
) -> None:
    expected = by_hand(name, lambda c: weights(net, name, c).square().sum().sqrt())
    torch.testing.assert_close(magnitude.score(pruning_groups[name]), expected)
    torch.testing.assert_close(
        l1.score(pruning_groups[name]), by_hand(name, lambda c: weights(net, name, c).abs().sum())
    )


@pytest.mark.parametrize("name", PLACES)
def test_lamp_divides_by_what_is_at_least_as_strong(
    name: str, net: nn.Module, pruning_groups: dict[str, PruningGroup]
) -> None:
    squared = by_hand(name, lambda c: weights(net, name, c).square().sum())
    expected = torch.stack([norm / squared[squared >= norm].sum() for norm in squared])
    torch.testing.assert_close(lamp.score(pruning_groups[name]), expected)
    assert lamp.score(pruning_groups[name]).max() == 1


def test_batch_norm_scales_are_absolute_and_filters_stand_in(
    net: nn.Module, pruning_groups: dict[str, PruningGroup]
) -> None:
    assert (net.norm.weight < 0).any()
    torch.testing.assert_close(
        bn_scale.score(pruning_groups["stem"]), net.norm.weight.abs() + net.back_norm.weight.abs()
    )
    torch.testing.assert_close(bn_scale.score(pruning_groups["right"]), net.both_norm.weight[4:].abs())
    torch.testing.assert_close(
        bn_scale.score(pruning_groups["after"]), net.after.weight.flatten(1).square().sum(1).sqrt()
    )


@pytest.mark.parametrize("name", PLACES)
def test_taylor_is_the_gradient_of_gates_on_the_channels(
    name: str, net: nn.Module, batches: list[tuple[Tensor, Tensor]], pruning_groups: dict[str, PruningGroup]
) -> None:
    images, labels = (torch.cat(parts) for parts in zip(*batches, strict=True))
    expected = torch.zeros(CHANNELS[name])
    for place in PLACES[name]:
        gate = torch.ones(CHANNELS[name], requires_grad=True)
        with gated(net, place, gate):
            F.cross_entropy(net(images), labels).backward(inputs=[gate])
        expected += gate.grad.abs()
    torch.testing.assert_close(taylor.score(pruning_groups[name]), expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("name", PLACES)
def test_fisher_is_half_the_squared_weights_times_squared_gradients_of_single_images(
    name: str, net: nn.Module, batches: list[tuple[Tensor, Tensor]], pruning_groups: dict[str, PruningGroup]
) -> None:
    images, labels = (torch.cat(parts) for parts in zip(*batches, strict=True))
    expected = torch.zeros(CHANNELS[name])
    tensors = net.state_dict(keep_vars=True)
    for image, label in zip(images, labels, strict=True):
        net.zero_grad()
        F.cross_entropy(net(image.unsqueeze(0)), label.unsqueeze(0)).backward()
        for place in PLACES[name]:
            for kind in ("weight", "bias") if place.side == "out" else ("weight",):
                if f"{place.module}.{kind}" not in tensors:
                    continue
                slope = tensors[f"{place.module}.{kind}"].grad
                for channel in range(CHANNELS[name]):
                    indices = range((place.first + channel) * place.each, (place.first + channel + 1) * place.each)
                    rows = slope[indices] if place.side == "out" else slope[:, indices]
                    weights_of_channel = values(net, place, kind, channel).detach()
                    expected[channel] += (weights_of_channel * rows.flatten()).square().sum() / 2 / len(images)
    net.zero_grad()
    torch.testing.assert_close(fisher.score(pruning_groups[name]), expected, rtol=1e-4, atol=1e-8)


def test_the_scale_and_shift_of_batch_norm_count_in_both_gradient_criteria(
    pruning_groups: dict[str, PruningGroup],
) -> None:
    bare = dataclasses.replace(
        pruning_groups["inner"],
        coupled_layers=tuple(m for m in pruning_groups["inner"].coupled_layers if m.layer_type != "norm"),
    )
    for score in (taylor.score, fisher.score):
        assert not torch.isclose(score(bare), score(pruning_groups["inner"])).any()


@pytest.mark.parametrize("name", registry.list_modules("criteria"))
def test_every_criterion_gives_finite_scores_that_are_not_negative(
    name: str, pruning_groups: dict[str, PruningGroup]
) -> None:
    score = registry.load_module("criteria", name).score
    for group in pruning_groups.values():
        given = score(group)
        assert given.shape == (group.channels,)
        assert given.isfinite().all()
        assert (given >= 0).all()
        assert len(given.unique()) > 1  # it tells channels apart
        assert torch.equal(given, score(group))


@pytest.mark.parametrize("name", registry.list_modules("criteria"))
def test_the_name_of_a_group_decides_random_importance_and_no_other(
    name: str, pruning_groups: dict[str, PruningGroup]
) -> None:
    score = registry.load_module("criteria", name).score
    group = pruning_groups["inner"]
    renamed = tuple(
        dataclasses.replace(member, module_name=f"other.{member.module_name}") for member in group.coupled_layers
    )
    same = torch.equal(score(group), score(dataclasses.replace(group, coupled_layers=renamed)))
    assert same == (name != "random")


def test_random_importance_does_not_see_weights_nor_torchs_seed(pruning_groups: dict[str, PruningGroup]) -> None:
    group = pruning_groups["inner"]
    first = random.score(group)
    torch.manual_seed(99)
    members = tuple(
        dataclasses.replace(m, parameters=tuple(dataclasses.replace(p, value=2 * p.value) for p in m.parameters))
        for m in group.coupled_layers
    )
    assert torch.equal(random.score(dataclasses.replace(group, coupled_layers=members)), first)


@pytest.mark.parametrize(
    "name", [n for n in registry.list_modules("criteria") if registry.load_module("criteria", n).NEEDS]
)
def test_a_criterion_that_needs_gradients_says_so_where_there_are_none(name: str, net: nn.Module) -> None:
    criterion = registry.load_module("criteria", name).score
    spec = PruneSpec(ratio=0.1)
    with pytest.raises(ToolchainError, match="reads gradients, and none were collected"):
        search_space.plan_for_ratio(net, IMAGE, head="head", spec=spec, alignment=1, criterion=criterion)


@pytest.mark.parametrize("name", registry.list_modules("criteria"))
@pytest.mark.parametrize("ranking", ["global", "isomorphic"])
def test_every_criterion_and_ranking_plans_a_network_that_runs(
    name: str, ranking: str, net: nn.Module, collected: Mapping[str, GradientMoments]
) -> None:
    spec, score = PruneSpec(ratio=0.2, ranking=ranking), registry.load_module("criteria", name).score
    plan = search_space.plan_for_ratio(
        net, IMAGE, head="head", spec=spec, alignment=1, criterion=score, gradients=collected
    )
    small = surgery.apply(net, plan)
    assert sum(layer.macs for layer in profile.measure_layers(small, IMAGE)) < 0.8 * sum(
        layer.macs for layer in profile.measure_layers(net, IMAGE)
    )
    assert small(torch.randn(2, 3, 4, 4)).shape == (2, 3)


def test_global_shares_add_up_to_one_in_every_group(pruning_groups: dict[str, PruningGroup]) -> None:
    for share in importance.compute_shares(list(pruning_groups.values()), magnitude.score, "global"):
        assert share.sum().item() == pytest.approx(1)


def test_isomorphic_shares_keep_the_criterions_scale_among_groups_of_one_structure_only(
    pruning_groups: dict[str, PruningGroup],
) -> None:
    left, right, after = pruning_groups["left"], pruning_groups["right"], pruning_groups["after"]
    assert importance.structure_key(left) == importance.structure_key(right) != importance.structure_key(after)
    given = dict(
        zip(
            pruning_groups,
            importance.compute_shares(list(pruning_groups.values()), magnitude.score, "isomorphic"),
            strict=True,
        )
    )
    scores = {name: magnitude.score(group).double() for name, group in pruning_groups.items()}
    torch.testing.assert_close(given["left"] / given["right"].sum(), scores["left"] / scores["right"].sum())
    assert (given["left"].sum() + given["right"].sum()).item() == pytest.approx(2)
    assert given["left"].sum().item() != pytest.approx(1, rel=0.01)
    for alone in ("stem", "inner", "after"):
        torch.testing.assert_close(given[alone], scores[alone] / scores[alone].sum())


def test_vanishing_gradients_are_refused(net: nn.Module) -> None:
    with torch.no_grad():
        net.head.weight.zero_()
        net.head.bias.copy_(torch.tensor([200.0, 0.0, 0.0]))  # without any doubt
    nothing = gradients.collect(net, [(torch.randn(4, 3, 4, 4), torch.zeros(4, dtype=torch.int64))])
    pruning_groups = groups.find(net, torch.zeros(1, 3, 4, 4), "head", nothing)
    for criterion in (taylor.score, fisher.score):
        with pytest.raises(ToolchainError, match=r"scores every channel 0.*criterion = .magnitude."):
            importance.compute_shares(pruning_groups, criterion, "global")
    importance.compute_shares(pruning_groups, magnitude.score, "global")
