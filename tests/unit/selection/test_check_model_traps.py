"""Each trap of `toolchain check-model` is found in a net that was written to have it, and in no published one."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from toolchain.config.recipe import ModelSpec
from toolchain.models import build
from toolchain.selection.check_model import known_traps, outputs, recorded_forward, runs
from toolchain.selection.check_model.finding import Finding
from toolchain.selection.check_model.subject import Subject, make_subject

SIZE = (32, 32)
CLASSES = 5


class Net(nn.Module):
    """A clean classifier, which the nets below spoil in one way each."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 32, 3, 2, 1)
        self.norm = nn.BatchNorm2d(32)
        self.second = nn.Conv2d(32, 32, 3, 1, 1)
        self.fc = nn.Linear(32, CLASSES)

    def features(self, x: Tensor) -> Tensor:
        x = torch.relu(self.norm(self.conv(x)))
        return torch.relu(self.second(x))

    def forward(self, x: Tensor) -> Any:
        return self.fc(self.features(x).mean((2, 3)))


class EndsWithSoftmax(Net):
    def forward(self, x: Tensor) -> Tensor:
        return F.softmax(super().forward(x), dim=1)  # the line that is named


class EndsWithSigmoid(Net):
    def forward(self, x: Tensor) -> Tensor:
        return torch.sigmoid(super().forward(x))


class DropsInEvaluation(Net):
    def forward(self, x: Tensor) -> Tensor:
        return self.fc(F.dropout(self.features(x).mean((2, 3)), 0.5))


class DrawsNoise(Net):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x + 0.1 * torch.randn_like(x))  # type: ignore[no-any-return]


class StaysInTraining(Net):
    def __init__(self) -> None:
        super().__init__()
        self.drop = nn.Dropout(0.5)

    def train(self, mode: bool = True) -> "StaysInTraining":
        return super().train(True)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.drop(self.features(x).mean((2, 3))))


class FixedBatch(Net):
    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.features(x).mean((2, 3)).view(1, 32))


class FoldedBatch(Net):
    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.features(x).mean((2, 3)).reshape(-1, 32).sum(0, keepdim=True))


class MixesImages(Net):
    def forward(self, x: Tensor) -> Tensor:
        features = self.features(x).mean((2, 3))
        return self.fc(features - features.mean(0) + 1)


class BoxesAndScores(Net):
    def forward(self, x: Tensor) -> Tensor:
        rows = self.features(x).flatten(2).transpose(1, 2)
        return torch.cat([rows[..., :4] * 100, rows[..., 4 : 5 + CLASSES].sigmoid()], 2)


class TwoOutputs(Net):
    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        features = self.features(x)
        return self.fc(features.mean((2, 3))), features


class TwoInputs(Net):
    def forward(self, x: Tensor, scale: Tensor) -> Tensor:
        return super().forward(x * scale)  # type: ignore[no-any-return]


class MapOfLogits(Net):
    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Conv2d(32, CLASSES, 1)  # type: ignore[assignment]

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.features(x).mean((2, 3), keepdim=True))


class WritesIntoItsInput(Net):
    def forward(self, x: Tensor) -> Tensor:
        x.sub_(0.5)
        return super().forward(x)  # type: ignore[no-any-return]


class WritesIntoParts(Net):
    def forward(self, x: Tensor) -> Tensor:
        x = self.features(x)
        x[:, :4] = 0
        return self.fc(x.mean((2, 3)))


class CutsTheGradient(Net):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x).detach()  # type: ignore[no-any-return]


class CountsImages(Net):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("seen", torch.zeros(1))

    def forward(self, x: Tensor) -> Tensor:
        self.seen += 1
        return super().forward(x)  # type: ignore[no-any-return]


class TiedWeights(Net):
    def __init__(self) -> None:
        super().__init__()
        self.third = nn.Conv2d(32, 32, 3, 1, 1)
        self.third.weight = self.second.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.third(self.features(x)).mean((2, 3)))


class RunsALayerTwice(Net):
    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.second(self.features(x)).mean((2, 3)))


class HasAnUnusedLayer(Net):
    def __init__(self) -> None:
        super().__init__()
        self.auxiliary = nn.Linear(32, 7)


def with_nan() -> nn.Module:
    net = Net()
    net.second.weight.data[0, 0, 0, 0] = float("nan")
    return net


def with_hook() -> nn.Module:
    net = Net()
    net.conv.register_forward_hook(lambda *_: None)
    return net


def with_weight_norm() -> nn.Module:
    net = Net()
    nn.utils.parametrizations.weight_norm(net.second)
    return net


def examine(model: nn.Module, size: tuple[int, int] = SIZE) -> list[Finding]:
    torch.manual_seed(0)
    subject = make_subject(model, size)
    findings = [*known_traps.check_modules(model), *runs.check_all(subject)]
    if any(finding.check == "runs" and finding.status == "pass" for finding in findings):
        recorded = recorded_forward.record(model, subject.image)
        findings += [*outputs.check_all(subject, recorded), *known_traps.check_forward(subject, recorded)]
    return findings


def troubles(model: nn.Module, size: tuple[int, int] = SIZE) -> dict[str, Finding]:
    return {finding.check: finding for finding in examine(model, size) if finding.status != "pass"}


@pytest.mark.parametrize(
    ("make", "expected"),
    [
        (EndsWithSoftmax, {"softmax": "warning"}),
        (EndsWithSigmoid, {"softmax": "warning"}),
        (DropsInEvaluation, {"dropout": "warning", "repeatable": "blocks"}),
        (DrawsNoise, {"random": "warning", "repeatable": "blocks"}),
        (StaysInTraining, {"batch_norm_training": "warning", "dropout": "warning", "repeatable": "blocks"}),
        (FixedBatch, {"batch": "blocks"}),
        (FoldedBatch, {"batch": "blocks"}),
        (MixesImages, {"batch": "warning"}),
        (BoxesAndScores, {"boxes_and_scores": "warning", "output": "blocks", "unused_parameters": "warning"}),
        (TwoOutputs, {"output": "blocks"}),
        (TwoInputs, {"inputs": "blocks"}),
        (MapOfLogits, {"output": "blocks"}),
        (WritesIntoItsInput, {"in_place": "warning"}),
        (WritesIntoParts, {"in_place": "warning", "gradients": "blocks"}),
        (CutsTheGradient, {"gradients": "blocks"}),
        (CountsImages, {"in_place": "warning"}),
        (TiedWeights, {"shared_weights": "warning"}),
        (RunsALayerTwice, {"repeated_layers": "warning"}),
        (HasAnUnusedLayer, {"unused_parameters": "warning"}),
        (with_nan, {"nan_weights": "blocks", "nan_output": "blocks"}),
        (with_hook, {"hooks": "warning"}),
        (with_weight_norm, {"hooks": "warning"}),
        (Net, {}),
    ],
    ids=lambda value: getattr(value, "__name__", None) or "-".join(value) or "nothing",
)
def test_each_trap_is_found_and_nothing_else(make: Callable[[], nn.Module], expected: dict[str, str]) -> None:
    found = troubles(make())
    assert {check: finding.status for check, finding in found.items()} == expected
    assert all(finding.action and finding.text.endswith(".") for finding in found.values())


@pytest.mark.parametrize(
    ("make", "check", "code"),
    [
        (EndsWithSoftmax, "softmax", "F.softmax(super().forward(x), dim=1)"),
        (DropsInEvaluation, "dropout", "F.dropout(self.features(x).mean((2, 3)), 0.5)"),
        (DrawsNoise, "random", "torch.randn_like(x)"),
        (FixedBatch, "batch", ".view(1, 32)"),
        (BoxesAndScores, "boxes_and_scores", "torch.cat([rows"),
        (WritesIntoItsInput, "in_place", "x.sub_(0.5)"),
        (WritesIntoParts, "in_place", "x[:, :4] = 0"),
    ],
    ids=lambda value: getattr(value, "__name__", None) or value.split("(")[0],
)
def test_the_line_of_the_models_code_is_named(make: Callable[[], nn.Module], check: str, code: str) -> None:
    line = troubles(make())[check].line
    assert line.startswith("test_check_model_traps.py, line ")
    assert code in line


def test_what_is_left_in_training_mode_is_named_with_the_override() -> None:
    found = troubles(StaysInTraining())
    assert "StaysInTraining overrides train()" in found["batch_norm_training"].text
    assert found["batch_norm_training"].modules == ("norm",)
    assert found["dropout"].modules == ("drop",)


class FixedSize(Net):
    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(32 * 16 * 16, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.features(x).flatten(1))


def test_another_image_size_is_proposed_where_this_one_does_not_fit() -> None:
    assert not troubles(FixedSize())
    found = troubles(FixedSize(), (64, 64))
    assert found["runs"].status == "blocks"
    assert "it runs at 32 (--image-size 32)" in found["runs"].action
    assert "self.fc(self.features(x).flatten(1))" in found["runs"].line


def test_a_gray_model_is_told_apart_from_a_wrong_size() -> None:
    net = Net()
    net.conv = nn.Conv2d(1, 32, 3, 2, 1)
    assert "takes 1 channels and the toolchain gives 3" in troubles(net)["runs"].action


def test_the_model_is_left_as_it_was() -> None:
    net = CountsImages()
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    examine(net)
    after = net.state_dict()
    assert all(torch.equal(tensor, after[name]) for name, tensor in before.items())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in net.modules())
    assert all(parameter.grad is None for parameter in net.parameters())


@pytest.mark.parametrize(
    ("name", "side"),
    [
        ("resnet18", 64), ("mobilenet_v2", 64), ("mobilenet_v3_small", 64), ("efficientnet_b0", 64), ("convnext_tiny", 64),
        ("shufflenet_v2_x0_5", 64), ("vit_b_16", 224), ("squeezenet1_1", 64), ("regnet_y_400mf", 64),
    ],
)  # fmt: skip
def test_published_models_have_no_traps(name: str, side: int) -> None:
    if name == "vit_b_16" and not torch.backends.mkldnn.is_available():
        pytest.skip("slow without oneDNN")
    assert troubles(build.build_untrained(ModelSpec(name=name), 10), (side, side)) == {}


def test_a_subject_finds_its_head_by_the_output() -> None:
    subject = make_subject(Net(), SIZE)
    assert (subject.head, subject.classes) == ("fc", CLASSES)
    assert isinstance(subject, Subject)
    assert make_subject(TwoOutputs(), SIZE).head == ""
