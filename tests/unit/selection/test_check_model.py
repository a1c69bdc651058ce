"""What can be pruned, traced, exported and run in int8 is found by trying it; a check goes on after one has failed."""

import dataclasses
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor, nn

from toolchain.config import read_config
from toolchain.config.recipe import ModelSpec
from toolchain.config.target import QuantScheme
from toolchain.core import files
from toolchain.core.errors import ToolchainError
from toolchain.measure import machine
from toolchain.models import build
from toolchain.selection.check_model import (
    cached_check,
    finding,
    prunable,
    recorded_forward,
    run_checks,
    subject,
    traces,
)
from toolchain.selection.check_model.finding import ModelCheck
from toolchain.selection.check_model.prunable import Prunability
from toolchain.selection.check_model.subject import make_subject

SIZE = (32, 32)
CPU = read_config.read_target("cpu")
UNTIMED = read_config.read_target("arm64" if machine.integer_isa() != "arm64" else "cpu")  # this machine cannot time it


class Net(nn.Module):
    """Three convolutions and a linear layer, all of which can be pruned, traced and quantized."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 32, 3, 2, 1)
        self.norm = nn.BatchNorm2d(32)
        self.second = nn.Conv2d(32, 64, 3, 2, 1)
        self.third = nn.Conv2d(64, 64, 3, 2, 1)
        self.fc = nn.Linear(64, 5)

    def features(self, x: Tensor) -> Tensor:
        x = torch.relu(self.norm(self.conv(x)))
        return torch.relu(self.third(torch.relu(self.second(x))))

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.features(x).mean((2, 3)))  # type: ignore[no-any-return]


class WritesAChannelCount(Net):
    def forward(self, x: Tensor) -> Tensor:
        return self.fc(F.adaptive_avg_pool2d(self.features(x), 1).view(-1, 64))  # type: ignore[no-any-return]


class ShufflesChannels(Net):
    def features(self, x: Tensor) -> Tensor:
        x = torch.relu(self.norm(self.conv(x)))
        x = x.view(len(x), 2, 16, 16, 16).transpose(1, 2).reshape(len(x), 32, 16, 16)
        return torch.relu(self.third(torch.relu(self.second(x))))


class GroupsChannels(Net):
    def __init__(self) -> None:
        super().__init__()
        self.second = nn.Conv2d(32, 64, 3, 2, 1, groups=2)


class NormalizesLayers(Net):
    def __init__(self) -> None:
        super().__init__()
        self.layer_norm = nn.LayerNorm(64)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.layer_norm(self.features(x).mean((2, 3))))  # type: ignore[no-any-return]


class BranchesOnValues(Net):
    def forward(self, x: Tensor) -> Tensor:
        x = self.features(x).mean((2, 3))
        if x.sum() > 0:
            x = 2 * x
        return self.fc(x)  # type: ignore[no-any-return]


class FixedBatch(Net):
    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.features(x).mean((2, 3)).view(1, 64))  # type: ignore[no-any-return]


def examine(model: nn.Module) -> Prunability:
    torch.manual_seed(0)
    model_subject = make_subject(model, SIZE)
    return prunable.examine(model_subject, 16, recorded_forward.record(model, model_subject.image))


def statuses(prunability: Prunability) -> dict[str, str]:
    return {found.check: found.status for found in prunability.findings}


def test_a_clean_net_can_be_pruned_in_every_layer() -> None:
    prunability = examine(Net())
    assert statuses(prunability) == {"prunable": "pass"}
    assert all(prunability.is_prunable(layer.name) for layer in prunability.layers)
    assert prunability.obstacles == {"fc": "its outputs are the classes"}
    assert prunability.most_share > 0.5
    assert prunability.half is not None
    assert prunability.half.keep


def test_a_channel_count_written_into_forward_is_found_by_pruning_and_named_with_its_line() -> None:
    prunability = examine(WritesAChannelCount())
    assert statuses(prunability) == {"prunable": "pass", "channel_arithmetic": "warning"}
    trouble = prunability.findings[1]
    assert ".view(-1, 64)" in trouble.line
    assert 'protect = ["third"]' in trouble.action
    assert not prunability.is_prunable("fc")
    assert prunability.is_prunable("second")  # the other groups can still be pruned
    assert ".view(-1, 64)" in prunability.obstacles["third"]


def test_the_protect_setting_that_is_advised_is_enough() -> None:
    """What the advice names is left out, the rest is pruned, and the model still runs."""
    model = WritesAChannelCount()
    prunability = examine(model)
    protected = set(prunability.findings[1].modules)
    assert not any(
        layer.module_name in protected and layer.role == "out"
        for group in prunability.groups
        for layer in group.coupled_layers
    )
    assert prunability.half is not None
    from toolchain.pruning import surgery

    assert surgery.apply(model, prunability.half)(torch.zeros(1, 3, *SIZE)).shape == (1, 5)


def test_a_shuffle_of_channels_blocks_tracing_and_its_line_is_named() -> None:
    prunability = examine(ShufflesChannels())
    found = {entry.check: entry for entry in prunability.findings}
    trouble = found.get("pruning_trace") or found.get("channel_arithmetic")
    assert trouble is not None
    assert "x.view(len(x), 2, 16, 16, 16)" in trouble.line
    assert not prunability.is_prunable("conv")


@pytest.mark.parametrize(
    ("make", "layer", "reason"),
    [
        (GroupsChannels, "conv", "grouped convolution second (groups=2)"),
        (NormalizesLayers, "third", "layer_norm (LayerNorm), whose channels cannot be sliced"),
    ],
    ids=("grouped", "layer-norm"),
)
def test_why_channels_stay_is_said_by_layer(make: Callable[[], nn.Module], layer: str, reason: str) -> None:
    assert reason in examine(make()).obstacles[layer]


def test_a_model_too_narrow_to_prune_is_quantized_only() -> None:
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(1), nn.Linear(8, 5))
    prunability = examine(model)
    assert statuses(prunability) == {"prunable": "warning"}
    assert "--ratio 0" in prunability.findings[0].action
    assert prunability.half is None


@pytest.mark.parametrize("name", ["resnet18", "mobilenet_v2", "mobilenet_v3_small", "efficientnet_b0", "convnext_tiny"])
def test_published_models_can_be_pruned_in_their_largest_part(name: str) -> None:
    model_subject = make_subject(build.build_untrained(ModelSpec(name=name), 10), (64, 64))
    prunability = prunable.examine(model_subject, 16)
    assert statuses(prunability) == {"prunable": "pass"}
    assert prunability.most_share > 0.5


def test_shufflenet_names_the_line_that_shuffles() -> None:
    model_subject = make_subject(build.build_untrained(ModelSpec(name="shufflenet_v2_x0_5"), 10), (64, 64))
    recorded = recorded_forward.record(model_subject.model, model_subject.image)
    found = {entry.check: entry for entry in prunable.examine(model_subject, 8, recorded).findings}
    assert found["pruning_trace"].status == "warning"
    assert found["pruning_trace"].line.startswith("shufflenetv2.py, line ")


@pytest.mark.parametrize(
    ("make", "code"),
    [(BranchesOnValues, "if x.sum() > 0:"), (FixedBatch, ".view(1, 64)")],
    ids=("branch", "fixed-batch"),
)
def test_the_line_that_torch_cannot_trace_is_named(make: Callable[[], nn.Module], code: str) -> None:
    traced = traces.trace(make_subject(make(), SIZE), QuantScheme())
    assert traced.graph is None
    (found,) = traced.findings
    assert (found.check, found.status) == ("traces", "blocks")
    assert found.line.startswith("test_check_model.py, line ")
    assert code in found.line


def check(model: nn.Module, tmp_path: Path) -> ModelCheck:
    return run_checks.check_model("net", model, SIZE, UNTIMED, tmp_path / "work")


def test_a_target_that_cannot_be_timed_here_is_checked_in_all_else(tmp_path: Path) -> None:
    if UNTIMED.isa == machine.integer_isa():
        pytest.skip("no target is foreign to this machine")
    checked = check(Net(), tmp_path)
    latency = checked.find("latency")
    assert latency is not None
    assert latency.status == "not_measured"
    assert "Untimed" in latency.text
    assert not checked.blocking
    assert [form.name for form in checked.forms] == ["f32", "int8", "pruned int8"]
    assert all(form.latency_ms is None for form in checked.forms)
    pruned, dense = checked.forms[2], checked.forms[0]
    assert pruned.macs <= 0.5 * dense.macs
    assert pruned.size_bytes < dense.size_bytes
    assert finding.share_of_macs(checked.layers, "prunable") == 1


def test_checks_go_on_after_one_has_failed(tmp_path: Path) -> None:
    checked = check(BranchesOnValues(), tmp_path)
    assert [entry.check for entry in checked.blocking] == ["traces"]
    prunability = checked.find("prunable")
    assert prunability is not None
    assert prunability.status == "pass"
    assert not checked.forms
    assert finding.describe_abilities(checked) == "Blocked: traces"


def test_a_model_that_does_not_run_still_has_its_other_findings(tmp_path: Path) -> None:
    net = Net()
    net.fc = nn.Linear(7, 5)
    net.fc.weight.data[0, 0] = float("inf")
    assert {entry.check for entry in check(net, tmp_path).blocking} == {"runs", "nan_weights"}


def test_latency_is_measured_where_the_machine_has_the_targets_instructions(tmp_path: Path) -> None:
    target = dataclasses.replace(CPU, isa=machine.integer_isa())
    checked = run_checks.check_model("net", Net(), (64, 64), target, tmp_path / "work")
    forms = {form.name: form for form in checked.forms}
    assert all(form.latency_ms and form.latency_ms.low <= form.latency_ms.estimate for form in forms.values())
    assert forms["f32"].speedup is None
    assert forms["pruned int8"].speedup is not None
    int8 = checked.find("int8")
    assert int8 is not None
    assert int8.text.startswith("4 of 4 layers run in int8")
    assert finding.read_check(files.to_jsonable(checked)) == checked
    assert {path.name for path in (tmp_path / "work").iterdir()} == {"rounds.json"}  # compiled files are removed


# --- weights and the cache ----------------------------------------------------------------------------------


def test_weights_of_another_model_block_with_their_names(tmp_path: Path) -> None:
    save_file(Net().state_dict(), tmp_path / "net.safetensors")
    _, _, found = subject.load(ModelSpec(name="resnet18", weights=str(tmp_path / "net.safetensors")), None)
    assert found.status == "blocks"
    assert "0% of the backbone's weights match" in found.text
    assert "missing: bn1.bias" in found.text
    assert "conv1.weight" in found.modules


def test_weights_that_hold_nan_block(tmp_path: Path) -> None:
    model = build.build_untrained(ModelSpec(name="squeezenet1_1"), 10)
    state = model.state_dict()
    state["features.0.weight"][0] = float("nan")
    save_file(state, tmp_path / "nan.safetensors")
    _, _, found = subject.load(ModelSpec(name="squeezenet1_1", weights=str(tmp_path / "nan.safetensors")), None)
    assert found.status == "blocks"
    assert "features.0.weight holds NaN" in found.text


def test_the_head_of_a_checkpoint_decides_the_number_of_classes(tmp_path: Path) -> None:
    trained = build.build_untrained(ModelSpec(name="squeezenet1_1"), 7)
    save_file(trained.state_dict(), tmp_path / "seven.safetensors")
    spec = ModelSpec(name="squeezenet1_1", weights=str(tmp_path / "seven.safetensors"))
    model, _, found = subject.load(spec, None)
    assert (found.status, make_subject(model, (64, 64)).classes) == ("pass", 7)
    assert torch.equal(model.state_dict()["classifier.1.weight"], trained.state_dict()["classifier.1.weight"])
    wider, _, _ = subject.load(spec, 9)
    assert make_subject(wider, (64, 64)).classes == 9


def test_what_is_missing_from_a_checkpoint_is_a_warning(tmp_path: Path) -> None:
    state = build.build_untrained(ModelSpec(name="squeezenet1_1"), 1000).state_dict()
    del state["features.0.bias"]
    save_file(state, tmp_path / "part.safetensors")
    _, _, found = subject.load(ModelSpec(name="squeezenet1_1", weights=str(tmp_path / "part.safetensors")), None)
    assert found.status == "warning"
    assert "missing: features.0.bias" in found.text


NET = """
import torch
from torch import nn

class Own(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.conv = nn.Conv2d(3, width, 3, 2, 1)
        self.fc = nn.Linear(width, 4)

    def forward(self, x):
        return self.fc(torch.relu(self.conv(x)).mean((2, 3)))

def build(width=32):
    return Own(width)
"""


def test_a_check_of_an_own_model_is_cached_until_its_file_changes(tmp_path: Path) -> None:
    (tmp_path / "net.py").write_text(NET)
    spec = ModelSpec(name=f"{tmp_path / 'net.py'}:build")

    def run() -> tuple[ModelCheck, int]:
        checked = cached_check.check("own", spec, None, SIZE, UNTIMED, tmp_path / "work")
        return checked, len(list((tmp_path / "work" / "check-model").iterdir()))

    first, folders = run()
    assert (first.classes, folders) == (4, 1)
    again, folders = run()
    assert (again, folders) == (first, 1)
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "other.py").write_text("")  # nothing imports it
    assert run() == (first, 1)
    (tmp_path / "net.py").write_text(NET.replace("mean((2, 3))", "amax((2, 3))"))
    assert run()[1] == 2


def test_what_an_own_model_imports_from_a_package_beside_it_counts_for_the_cache(tmp_path: Path) -> None:
    (tmp_path / "net.py").write_text("from parts.layers import make\n\ndef build():\n    return make()\n")
    (tmp_path / "parts" / "deep").mkdir(parents=True)
    (tmp_path / "parts" / "deep" / "more.py").write_text("WIDTH = 1")
    digest = cached_check._digest_sources(f"{tmp_path / 'net.py'}:build")
    (tmp_path / "parts" / "deep" / "more.py").write_text("WIDTH = 2")
    assert digest
    assert cached_check._digest_sources(f"{tmp_path / 'net.py'}:build") != digest
    assert cached_check._digest_sources("resnet18") == cached_check._digest_sources("timm:resnet18") == ""
    assert cached_check._digest_sources("not_here.net:build") is None


def test_an_own_model_may_import_torchvision(tmp_path: Path) -> None:
    """Its import fails beside some builds of torch until missing operators are declared, also in the process that tries it."""
    code = "from torchvision.models import squeezenet1_1\n\ndef build():\n    return squeezenet1_1(num_classes=6)\n"
    (tmp_path / "vision_net.py").write_text(code)
    model, _, _ = subject.load(ModelSpec(name=f"{tmp_path / 'vision_net.py'}:build"), None)
    assert make_subject(model, (64, 64)).classes == 6


def test_a_wrong_model_is_an_error_and_no_finding(tmp_path: Path) -> None:
    with pytest.raises(ToolchainError, match="did you mean 'resnet18'"):
        cached_check.check("resnet81", ModelSpec(name="resnet81"), None, SIZE, UNTIMED, tmp_path / "work")
    with pytest.raises(ToolchainError, match=r"none\.pth does not exist"):
        cached_check.check("m", ModelSpec(name="resnet18", weights="none.pth"), None, SIZE, UNTIMED, tmp_path / "work")
