"""Pruning as data: the right channels go, together, and a replay on a fresh model gives the same network."""

import json
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from toolchain.config.recipe import ModelSpec, PruneSpec
from toolchain.core import files
from toolchain.core.errors import ToolchainError
from toolchain.models import build, profile
from toolchain.pruning import groups, search_space, surgery, width_search
from toolchain.pruning.criteria import magnitude
from toolchain.pruning.surgery import Surgery


class Net(nn.Module):
    """Residual, depthwise, concatenation and flatten in one."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 48, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(48)
        self.inner = nn.Conv2d(48, 64, 1)
        self.depthwise = nn.Conv2d(64, 64, 3, padding=1, groups=64)
        self.back = nn.Conv2d(64, 48, 1)
        self.left = nn.Conv2d(48, 32, 1)
        self.right = nn.Conv2d(48, 40, 3, padding=1)
        self.mix = nn.Conv2d(72, 32, 1)
        self.head = nn.Linear(32 * 16, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.norm(self.stem(x)))
        x = x + self.back(torch.relu(self.depthwise(torch.relu(self.inner(x)))))
        x = self.mix(torch.cat([self.left(x), self.right(x)], 1))
        return self.head(torch.relu(x).flatten(1))


IMAGE = torch.zeros(1, 3, 4, 4)


@pytest.fixture
def net() -> nn.Module:
    torch.manual_seed(0)
    return Net().eval()


def plan(net: nn.Module, ratio: float = 0.4, *, protect: tuple[str, ...] = (), alignment: int = 16) -> Surgery:
    spec = PruneSpec(ratio=ratio, protect=protect)
    return search_space.plan_for_ratio(
        net, IMAGE, head="head", spec=spec, alignment=alignment, criterion=magnitude.score
    )


def macs(net: nn.Module) -> int:
    return sum(layer.macs for layer in profile.measure_layers(net, IMAGE))


def test_pruned_network_runs_and_saves_at_least_the_ratio(net: nn.Module) -> None:
    small = surgery.apply(net, plan(net))
    assert macs(small) <= 0.6 * macs(net)
    assert small(torch.randn(2, 3, 4, 4)).shape == (2, 5)


def test_predicted_layers_are_those_of_the_network_that_comes_out(net: nn.Module) -> None:
    space = search_space.build_search_space(
        net, IMAGE, head="head", spec=PruneSpec(), alignment=16, criterion=magnitude.score
    )
    kept = tuple(16 if group.channels > 16 else group.channels for group in space.groups)
    subnetwork = width_search.Subnetwork(kept)
    assert tuple(space.remaining_layers(subnetwork)) == profile.measure_layers(
        surgery.apply(net, surgery.build(net, space, subnetwork)), IMAGE
    )


def test_widths_are_multiples_of_the_alignment_or_untouched(net: nn.Module) -> None:
    small = surgery.apply(net, plan(net))
    pairs = zip(profile.measure_layers(net, IMAGE), profile.measure_layers(small, IMAGE), strict=True)
    changed = [(before.outputs, after.outputs) for before, after in pairs if before.outputs != after.outputs]
    assert changed
    assert all(after % 16 == 0 for _, after in changed)


def test_removing_channels_that_do_nothing_changes_no_output(net: nn.Module) -> None:
    with torch.no_grad():
        for layer in (net.inner, net.depthwise):
            layer.weight[:16] = 0
            layer.bias[:16] = 0
    spec = PruneSpec(ratio=0.01, protect=("stem", "left", "right", "back"))
    planned = search_space.plan_for_ratio(net, IMAGE, head="head", spec=spec, alignment=16, criterion=magnitude.score)
    assert list(planned.keep["inner.weight"][0]) == list(range(16, 64))
    x = torch.randn(3, 3, 4, 4)
    torch.testing.assert_close(surgery.apply(net, planned)(x), net(x))


def test_flattened_inputs_lose_all_positions_of_a_channel(net: nn.Module) -> None:
    pruning_groups = groups.find(net, IMAGE, "head")
    mix = next(
        group
        for group in pruning_groups
        if any(m.module_name == "mix" and m.role == "out" for m in group.coupled_layers)
    )
    head = next(member for member in mix.coupled_layers if member.module_name == "head")
    assert head.channel_indices[1] == tuple(range(16, 32))


def test_concatenated_channels_keep_their_offset(net: nn.Module) -> None:
    pruning_groups = groups.find(net, IMAGE, "head")
    right = next(
        group
        for group in pruning_groups
        if any(m.module_name == "right" and m.role == "out" for m in group.coupled_layers)
    )
    mix = next(member for member in right.coupled_layers if member.module_name == "mix")
    assert mix.channel_indices == tuple((i,) for i in range(32, 72))


def test_groups_that_the_graph_loses_track_of_are_left_alone() -> None:
    class Lost(Net):  # a concatenation straight into a flatten
        def __init__(self) -> None:
            super().__init__()
            self.head = nn.Linear(72 * 16, 5)

        def forward(self, x: Tensor) -> Tensor:
            x = torch.relu(self.norm(self.stem(x)))
            return self.head(torch.relu(torch.cat([self.left(x), self.right(x)], 1)).flatten(1))

    lost = Lost().eval()
    small = surgery.apply(lost, plan(lost, 0.2))
    assert small(torch.randn(2, 3, 4, 4)).shape == (2, 5)
    assert small.get_submodule("left").out_channels == 32


def test_plan_survives_json_and_replays_on_a_fresh_model(net: nn.Module, tmp_path: Path) -> None:
    planned = plan(net)
    files.write_json(tmp_path / "plan.json", planned)
    again = surgery.read(tmp_path / "plan.json")
    fresh = surgery.apply(Net().eval(), again)
    fresh.load_state_dict(surgery.apply(net, planned).state_dict())
    x = torch.randn(2, 3, 4, 4)
    assert torch.equal(fresh(x), surgery.apply(net, planned)(x))


def test_planning_and_applying_leave_the_model_alone(net: nn.Module) -> None:
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    surgery.apply(net, plan(net))
    assert all(torch.equal(tensor, before[name]) for name, tensor in net.state_dict().items())


def test_a_protected_layer_keeps_its_channels(net: nn.Module) -> None:
    small = surgery.apply(net, plan(net, 0.2, protect=("inner",)))
    assert small.get_submodule("inner").out_channels == 64


def test_a_pattern_that_matches_nothing_is_refused(net: nn.Module) -> None:
    with pytest.raises(ToolchainError, match=r"'inne\?_' matches no layer"):
        plan(net, protect=("inne?_",))


def test_an_unreachable_ratio_names_the_most_that_can_go(net: nn.Module) -> None:
    with pytest.raises(ToolchainError, match=r"the most is 0\.\d\d"):
        plan(net, 0.99)


def test_a_plan_for_another_model_is_refused(net: nn.Module) -> None:
    with pytest.raises(ToolchainError, match="another model"):
        surgery.apply(nn.Sequential(nn.Conv2d(3, 8, 1)), plan(net))


def test_a_file_that_is_no_plan_is_refused(tmp_path: Path) -> None:
    (tmp_path / "plan.json").write_text(json.dumps({"keep": 3}))
    with pytest.raises(ToolchainError, match="not a surgery plan"):
        surgery.read(tmp_path / "plan.json")


def test_magnitude_agrees_with_a_brute_force_sum(net: nn.Module) -> None:
    pruning_groups = groups.find(net, IMAGE, "head")
    stem = next(group for group in pruning_groups if any(m.module_name == "stem" for m in group.coupled_layers))
    parts = [net.stem.weight.flatten(1), net.norm.weight[:, None], net.inner.weight.transpose(0, 1).flatten(1)]
    parts += [net.back.weight.flatten(1), net.left.weight.transpose(0, 1).flatten(1)]
    parts += [net.right.weight.transpose(0, 1).flatten(1)]
    expected = torch.cat(parts, 1).square().sum(1).sqrt()
    torch.testing.assert_close(magnitude.score(stem), expected)


@pytest.mark.parametrize("name", ["resnet18", "mobilenet_v2", "squeezenet1_1", "densenet121"])
def test_torchvision_models_prune_and_run(name: str) -> None:
    model = build.build_untrained(ModelSpec(name=name), 7).eval()
    image = torch.zeros(1, 3, 64, 64)
    spec, head = PruneSpec(ratio=0.3), build.find_head(model, 7)
    planned = search_space.plan_for_ratio(model, image, head=head, spec=spec, alignment=16, criterion=magnitude.score)
    small = surgery.apply(model, planned)
    assert small(torch.randn(2, 3, 64, 64)).shape == (2, 7)
