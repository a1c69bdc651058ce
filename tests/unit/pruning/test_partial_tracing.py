"""A model that cannot be traced as a whole is traced in parts, and the channels that enter or leave a part stay."""

import contextlib
import signal
import time

import pytest
import torch
from torch import Tensor, nn

from toolchain.config.recipe import ModelSpec, PruneSpec
from toolchain.core.errors import ToolchainError
from toolchain.models import build
from toolchain.pruning import groups, partial_tracing, search_space, surgery
from toolchain.pruning.criteria import magnitude
from toolchain.pruning.groups import PruningGroup
from toolchain.pruning.partial_tracing import TraceablePart
from toolchain.pruning.trace_limit import limit_seconds

IMAGE = torch.zeros(1, 3, 8, 8)


class Windows(nn.Module):
    """Stands for window attention, which cannot be traced."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.relative_position_bias_table = nn.Parameter(torch.randn(channels))
        self.mix = nn.Conv2d(channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.mix(x + self.relative_position_bias_table[:, None, None])


class Net(nn.Module):
    """Two parts around window attention, the second with a residual and a depthwise layer at its entry."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Sequential(nn.Conv2d(3, 32, 3), nn.BatchNorm2d(32), nn.ReLU(), nn.Conv2d(32, 16, 1))
        self.windows = Windows(16)
        self.second = nn.Sequential(
            nn.Conv2d(16, 16, 3, 1, 1, groups=16), nn.Conv2d(16, 64, 1), nn.ReLU(), nn.Conv2d(64, 24, 1)
        )
        self.head = nn.Linear(24, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.second(self.windows(self.first(x))).mean((2, 3)))


def sides(pruning_groups: tuple[PruningGroup, ...]) -> set[tuple[str, str]]:
    return {(member.module_name, member.role) for group in pruning_groups for member in group.coupled_layers}


def test_only_channels_inside_of_parts_may_go() -> None:
    pruning_groups = groups.find(Net().eval(), IMAGE, "head")
    inside = {("first.0", "out"), ("first.1", "out"), ("first.3", "in"), ("second.1", "out"), ("second.3", "in")}
    assert sides(pruning_groups) == inside


def test_a_plan_made_of_parts_cuts_the_same_channels_everywhere() -> None:
    net = Net().eval()
    spec = PruneSpec(ratio=0.2)
    plan = search_space.plan_for_ratio(net, IMAGE, head="head", spec=spec, alignment=16, criterion=magnitude.score)
    small = surgery.apply(net, plan)
    with torch.no_grad():
        for name, kept in plan.keep.items():
            if 1 in kept:
                weight = net.get_parameter(name)
                weight[:, [i for i in range(weight.shape[1]) if i not in kept[1]]] = 0
        x = torch.randn(2, 3, 8, 8)
        assert plan.keep
        torch.testing.assert_close(small(x), net(x))


def test_a_residual_that_enters_a_part_keeps_what_is_added_to_it() -> None:
    class Residual(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = nn.Sequential(nn.Conv2d(16, 32, 1), nn.ReLU(), nn.Conv2d(32, 16, 1))
            self.out = nn.Conv2d(16, 16, 1)

        def forward(self, x: Tensor) -> Tensor:
            return self.out(x + self.layers(x))

    net = Net().eval()
    net.second = nn.Sequential(Residual(), nn.Conv2d(16, 24, 1)).eval()  # its stream is the part's own input
    inside = {side for side in sides(groups.find(net, IMAGE, "head")) if side[0].startswith("second")}
    assert inside == {
        ("second.0.layers.0", "out"), ("second.0.layers.2", "in"), ("second.0.out", "out"), ("second.1", "in")
    }  # fmt: skip


def test_what_is_called_twice_is_no_part() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.shared = nn.Sequential(nn.Conv2d(3, 3, 1), nn.ReLU(), nn.Conv2d(3, 3, 1))
            self.once = nn.Sequential(nn.Conv2d(3, 8, 1), nn.ReLU())

        def forward(self, x: Tensor) -> Tensor:
            return self.once(self.shared(self.shared(x)))

    assert [part.name for part in partial_tracing.split(TraceablePart("net", Twice(), IMAGE))] == ["net.once"]


@pytest.mark.parametrize("needed", [False, True])
def test_a_module_called_with_keyword_arguments_is_no_part(needed: bool) -> None:
    class Skips(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Conv2d(16, 16, 1), nn.Conv2d(16, 16, 1)

        def forward(self, x: Tensor, skip: Tensor | None = None) -> Tensor:
            if needed and skip is None:
                raise TypeError("skip is missing")
            return self.b(self.a(x) if skip is None else self.a(x) + skip)

    class Named(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.windows, self.block = Windows(3), Skips()
            self.stem, self.head = nn.Conv2d(3, 16, 1), nn.Linear(16, 5)

        def forward(self, x: Tensor) -> Tensor:
            x = self.stem(self.windows(x))
            return self.head(self.block(x, skip=x).mean((2, 3)))

    with pytest.raises(ToolchainError, match="cannot be traced"):
        groups.find(Named().eval(), IMAGE, "head")


def test_a_model_without_a_part_that_can_be_traced_is_refused() -> None:
    with pytest.raises(ToolchainError, match=r"cannot be traced .*window attention \(.*relative_position.* ratio = 0"):
        groups.find(nn.Sequential(Windows(3), nn.Flatten(), nn.Linear(192, 5)).eval(), IMAGE, "2")


@pytest.mark.parametrize("name", ["shufflenet_v2_x1_0", "swin_t"])
def test_networks_that_shuffle_channels_or_shift_windows_prune_and_run(name: str) -> None:
    model, image = build.build_untrained(ModelSpec(name=name), 7).eval(), torch.zeros(1, 3, 64, 64)
    spec, head = PruneSpec(ratio=0.3), build.find_head(model, 7)
    plan = search_space.plan_for_ratio(model, image, head=head, spec=spec, alignment=16, criterion=magnitude.score)
    assert surgery.apply(model, plan)(torch.randn(2, 3, 64, 64)).shape == (2, 7)


def test_tracing_that_takes_too_long_is_ended_and_the_next_one_has_its_time() -> None:
    layers = [nn.Conv2d(16 if number else 3, 16, 3, 1, 1) for number in range(300)]
    model = nn.Sequential(*layers, nn.Flatten(), nn.Linear(16 * 8 * 8, 5)).eval()  # a second of tracing
    traced = groups.trace_channels(model, IMAGE, "301", seconds=1e-3)
    assert "following single channels takes more than" in str(traced.failures[0][1])
    assert not groups.trace_channels(model, IMAGE, "301").failures


def test_the_limit_holds_where_the_error_is_caught_on_the_way() -> None:
    def compute() -> None:
        with contextlib.suppress(Exception):
            while time.process_time() < started + 1.0:
                pass

    started = time.process_time()
    with (
        pytest.raises(ToolchainError, match="following single channels takes more than"),
        limit_seconds(0.02, __name__),
    ):
        compute()


def test_no_signal_is_sent_that_could_end_the_process() -> None:
    handler = signal.getsignal(signal.SIGVTALRM)
    with limit_seconds(60.0, __name__):
        assert signal.getitimer(signal.ITIMER_VIRTUAL) == signal.getitimer(signal.ITIMER_PROF) == (0.0, 0.0)
    assert signal.getsignal(signal.SIGVTALRM) == handler


def test_the_limit_does_not_raise_in_code_of_another_package() -> None:
    started = time.process_time()
    with limit_seconds(0.02, "torch_pruning"):
        while time.process_time() < started + 0.2:
            pass
