"""A poor calibration gives a finding that names the problem, and a sound calibration gives none."""

import pytest
import torch
from torch import Tensor, nn
from torch.fx import GraphModule

from toolchain.config.recipe import CalibrationMethod
from toolchain.config.target import QuantScheme
from toolchain.core.errors import ToolchainError
from toolchain.quantization import calibration_checks, pt2e, ranges
from toolchain.quantization.calibration_checks import Finding
from toolchain.quantization.placement import Placement


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU())
        self.inner = nn.Sequential(nn.Conv2d(16, 16, 3, padding=1), nn.ReLU())
        self.back = nn.Conv2d(16, 16, 1)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.head = nn.Linear(16, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        x = x + self.back(self.inner(x))
        return self.head(self.pool(x).flatten(1))


@pytest.fixture
def model() -> nn.Module:
    torch.manual_seed(1)
    return Net().eval()


def images(count: int, seed: int = 0) -> Tensor:
    return torch.randn(count, 3, 16, 16, generator=torch.Generator().manual_seed(seed))


def calibrated(model: nn.Module, calibration: Tensor, method: CalibrationMethod = "minmax") -> GraphModule:
    graph, _ = pt2e.prepare(model, calibration[:1], Placement(), QuantScheme())
    ranges.calibrate(graph, ranges.collect_histograms(graph, calibration.split(64)), method)
    return graph


def find(
    model: nn.Module, calibration: Tensor, validation: Tensor, method: CalibrationMethod = "minmax"
) -> tuple[Finding, ...]:
    graph = calibrated(model, calibration, method)
    return calibration_checks.check(graph, calibration.split(64), validation.split(64))


def of_kind(findings: tuple[Finding, ...], kind: str) -> list[Finding]:
    return [finding for finding in findings if finding.kind == kind]


def zeroed(layer: nn.Module, channels: slice) -> None:
    with torch.no_grad():
        layer.weight[channels] = 0
        layer.bias[channels] = 0


@pytest.mark.parametrize("method", ["minmax", "percentile", "mse"])
def test_a_sound_model_on_ordinary_images_gives_no_findings(model: nn.Module, method: CalibrationMethod) -> None:
    assert find(model, images(256, 1), images(200, 2), method) == ()


@pytest.mark.parametrize("seed", range(4))
def test_chance_alone_gives_no_findings(seed: int) -> None:
    torch.manual_seed(seed)
    varied = images(400, seed) * torch.rand(400, 1, 1, 1).add(0.5)  # of different contrast
    assert find(Net().eval(), varied[:256], varied[256 : 256 + 40]) == ()


def test_channels_that_never_change_are_counted_and_named(model: nn.Module) -> None:
    zeroed(model.inner[0], slice(3, 5))
    (finding,) = find(model, images(64, 1), images(64, 2))
    assert (finding.kind, finding.module, finding.measured, finding.limit) == (
        "constant channels",
        "inner.0",
        2 / 16,
        0,
    )
    assert "inner.0: 2 of its 16 output channels never change over 64 calibration images" in finding.why
    assert "prune them" in finding.why


def test_a_channel_that_only_its_bias_fills_never_changes_either(model: nn.Module) -> None:
    with torch.no_grad():
        model.back.weight[7] = 0
        model.back.bias[7] = 0.5
    (finding,) = find(model, images(64, 1), images(64, 2))
    assert (finding.kind, finding.module) == ("constant channels", "back")


def test_a_dead_activation_is_named(model: nn.Module) -> None:
    zeroed(model.inner[0], slice(None))
    findings = find(model, images(64, 1), images(64, 2))
    dead = of_kind(findings, "dead activation")
    assert [finding.module for finding in dead] == ["inner.1"]
    assert "its values are all 0 on 64 calibration images" in dead[0].why
    assert {finding.module for finding in of_kind(findings, "constant channels")} == {"inner.0", "back"}


def test_brighter_validation_images_are_clipped_and_the_worst_modules_are_named_first(model: nn.Module) -> None:
    findings = find(model, images(64, 1), images(64, 2) * 3)
    clipped = of_kind(findings, "saturated activation")
    shares = [finding.measured for finding in clipped]
    assert len(clipped) == calibration_checks.MAX_NAMED_MODULES
    assert shares == sorted(shares, reverse=True)
    assert shares[-1] > clipped[-1].limit == calibration_checks.MAX_CLIPPED_SHARE
    assert " % of its values on the validation images lie outside the calibrated range" in clipped[0].why
    assert "more modules)" in clipped[-1].why


def test_a_single_outlier_among_validation_images_is_no_saturation(model: nn.Module) -> None:
    validation = images(64, 2)
    validation[5] *= 20
    assert find(model, images(64, 1), validation) == ()


def test_two_images_of_different_contrast_are_too_few(model: nn.Module) -> None:
    calibration = images(2, 1) * torch.tensor([0.2, 1.0]).reshape(2, 1, 1, 1)
    (finding,) = of_kind(find(model, calibration, images(64, 2)), "too few images")
    assert finding.measured > finding.limit
    assert finding.why.startswith("2 calibration images are too few")
    assert "more images help" in finding.why


def test_validation_images_of_another_brightness_are_unlike(model: nn.Module) -> None:
    findings = find(model, images(128, 1), images(128, 2) * 0.5 + 0.3)
    (finding,) = [candidate for candidate in of_kind(findings, "unlike validation") if candidate.module == "input"]
    assert "the validation images differ from the calibration images" in finding.why


def test_validation_images_of_another_pattern_are_unlike_though_just_as_bright(model: nn.Module) -> None:
    sparse = images(128, 2) * (images(128, 3) > 1.5)  # one pixel in fifteen
    even, sparse = (each / each.std((2, 3), keepdim=True) for each in (images(128, 1), sparse))
    even, sparse = (each - each.mean((2, 3), keepdim=True) for each in (even, sparse))
    (finding,) = of_kind(find(model, even, sparse), "unlike validation")
    assert finding.module == ""
    assert "go beyond the range of all 128 calibration images" in finding.why


def test_a_weight_that_is_not_a_number_is_an_error_naming_its_module(model: nn.Module) -> None:
    graph = calibrated(model, images(16))
    with torch.no_grad():
        graph.get_parameter("back.weight")[3, 2] = torch.nan
    with pytest.raises(ToolchainError, match=r"^back: 1 of 256 values of its weight are NaN or infinite"):
        calibration_checks.check(graph, [images(16)], [images(16, 1)])


def test_values_that_overflow_are_an_error_naming_where_they_come_from(model: nn.Module) -> None:
    graph = calibrated(model, images(16))
    with torch.no_grad():
        graph.get_parameter("inner.0.weight").fill_(3e38)
    with pytest.raises(ToolchainError, match=r"^inner\.1: NaN or infinite values") as error:
        calibration_checks.check(graph, [images(16)], [images(16, 1)])
    assert str(error.value).endswith("or leave the module in float")


def test_a_range_that_is_not_finite_is_an_error_naming_its_module(model: nn.Module) -> None:
    graph, _ = pt2e.prepare(model, images(1), Placement(), QuantScheme())  # never calibrated
    with pytest.raises(ToolchainError, match=r"^input: its range is inf to -inf"):
        calibration_checks.check(graph, [images(16)], [images(16, 1)])


def test_no_images_are_an_error_that_says_what_to_do(model: nn.Module) -> None:
    graph = calibrated(model, images(16))
    with pytest.raises(ToolchainError, match="there are no calibration images.*put images into"):
        calibration_checks.check(graph, [], [images(16)])
    with pytest.raises(ToolchainError, match="there are no validation images"):
        calibration_checks.check(graph, [images(16)], [])


def test_a_single_image_and_copies_of_it_give_one_finding(model: nn.Module) -> None:
    (single,) = find(model, images(1), images(16, 1))
    (copies,) = find(model, images(1).expand(70, -1, -1, -1), images(16, 1))
    assert (single.kind, copies.kind) == ("one image", "identical images")
    assert "there is one calibration image" in single.why
    assert "all 70 calibration images are the same" in copies.why


@pytest.mark.parametrize(("observing", "rounding"), [(False, True), (True, True), (True, False), (False, False)])
def test_the_graph_is_left_as_it_was(model: nn.Module, observing: bool, rounding: bool) -> None:
    graph = calibrated(model, images(64))
    pt2e.configure_fake_quantize(graph, ranges=observing, rounding=rounding)
    before = {name: tensor.clone() for name, tensor in graph.state_dict().items()}
    calibration_checks.check(graph, [images(64)], [images(64, 1) * 3])
    after = graph.state_dict()
    assert list(after) == list(before)
    assert all(torch.equal(after[name], before[name]) for name in before)
    assert all(not module._forward_hooks and not module._forward_pre_hooks for module in graph.modules())


def test_layers_left_in_float_are_checked_for_constant_channels_only(model: nn.Module) -> None:
    zeroed(model.inner[0], slice(3, 5))
    graph, _ = pt2e.prepare(model, images(1), Placement(float_modules=("",)), QuantScheme())
    findings = calibration_checks.check(graph, [images(64)], [images(64, 1) * 3])
    assert {finding.kind for finding in findings} == {"constant channels", "unlike validation"}


def test_channels_of_a_linear_layer_on_tokens_are_its_last_dimension() -> None:
    class Tokens(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.patch, self.mix, self.head = nn.Conv2d(3, 8, 4, 4), nn.Linear(8, 12), nn.Linear(12, 4)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.mix(self.patch(x).flatten(2).transpose(1, 2)).mean(1))

    torch.manual_seed(1)
    model = Tokens().eval()
    zeroed(model.mix, slice(0, 3))
    (finding,) = of_kind(find(model, images(64, 1), images(64, 2)), "constant channels")
    assert "mix: 3 of its 12 output channels" in finding.why
