"""Pretrained weights: matching tensors are loaded and reported; foreign, broken or dangerous checkpoints are rejected."""

import collections
import dataclasses
import sys
import types
import urllib.error
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from toolchain.config.recipe import ModelSpec
from toolchain.core.errors import ToolchainError
from toolchain.models import build
from toolchain.selection import candidates

SPEC = ModelSpec(name="mobilenet_v2", arguments={"width_mult": 0.25})


def checkpoint(folder: Path, spec: ModelSpec = SPEC, *, name: str = "w.safetensors", drop: str = "none") -> Path:
    torch.manual_seed(5)
    state = build.build_untrained(spec, 9).state_dict()
    state = {key: value for key, value in state.items() if not key.startswith(drop)}
    path = folder / name
    save_file(state, path) if path.suffix == ".safetensors" else torch.save(state, path)
    return path


@pytest.mark.parametrize("name", ["w.safetensors", "w.pth"])
def test_a_backbone_is_loaded_and_the_head_is_new(tmp_path: Path, name: str) -> None:
    path = checkpoint(tmp_path, name=name)
    model, head, loaded = build.build_with_new_head(dataclasses.replace(SPEC, weights=str(path)), 4, seed=0)
    assert head == "classifier.1"
    assert model.get_submodule(head).out_features == 4
    assert loaded.share == 1.0
    torch.manual_seed(5)
    torch.testing.assert_close(model.features[0][0].weight, build.build_untrained(SPEC, 9).features[0][0].weight)


def test_missing_and_unused_tensors_are_reported(tmp_path: Path) -> None:
    path = checkpoint(tmp_path, drop="features.3.")
    _, _, loaded = build.build_with_new_head(dataclasses.replace(SPEC, weights=str(path)), 4, seed=0)
    assert 0.9 < loaded.share < 1
    assert all(name.startswith("features.3.") for name in loaded.missing)
    assert "missing: features.3." in str(loaded)


def test_a_checkpoint_of_another_architecture_is_refused(tmp_path: Path) -> None:
    path = checkpoint(tmp_path, ModelSpec(name="squeezenet1_1"))
    with pytest.raises(ToolchainError, match="does not fit mobilenet_v2: only 0%"):
        build.build_with_new_head(dataclasses.replace(SPEC, weights=str(path)), 4, seed=0)


def test_another_width_is_refused(tmp_path: Path) -> None:
    path = checkpoint(tmp_path, ModelSpec(name="mobilenet_v2", arguments={"width_mult": 0.75}))
    with pytest.raises(ToolchainError, match="does not fit.*width_mult"):
        build.build_with_new_head(dataclasses.replace(SPEC, weights=str(path)), 4, seed=0)


def test_nan_weights_are_refused_by_name(tmp_path: Path) -> None:
    state = build.build_untrained(SPEC, 9).state_dict()
    state["features.2.conv.1.1.weight"][3] = float("nan")
    save_file(state, tmp_path / "w.safetensors")
    with pytest.raises(ToolchainError, match=r"features.2.conv.1.1.weight holds NaN"):
        build.build_with_new_head(dataclasses.replace(SPEC, weights=str(tmp_path / "w.safetensors")), 4, seed=0)


def test_a_checkpoint_that_could_run_code_is_refused(tmp_path: Path) -> None:
    class Evil:
        def __reduce__(self) -> tuple[object, ...]:
            return print, ("ran",)

    torch.save({"model": Evil()}, tmp_path / "w.pth")
    with pytest.raises(ToolchainError, match="could run code"):
        build.build_with_new_head(dataclasses.replace(SPEC, weights=str(tmp_path / "w.pth")), 4, seed=0)


@pytest.mark.parametrize("nested", ["state_dict", "net"])
def test_a_state_dict_inside_a_training_checkpoint_is_found(tmp_path: Path, nested: str) -> None:
    torch.save({nested: build.build_untrained(SPEC, 9).state_dict(), "epoch": 3}, tmp_path / "w.pth")
    _, _, loaded = build.build_with_new_head(dataclasses.replace(SPEC, weights=str(tmp_path / "w.pth")), 4, seed=0)
    assert loaded.share == 1.0


@pytest.mark.parametrize("content", [torch.zeros(3), [1, 2], {"epoch": 3}])
def test_a_checkpoint_without_a_model_is_refused(tmp_path: Path, content: object) -> None:
    torch.save(content, tmp_path / "w.pth")
    with pytest.raises(ToolchainError, match="expected is a state_dict"):
        build.build_with_new_head(dataclasses.replace(SPEC, weights=str(tmp_path / "w.pth")), 4, seed=0)


def test_missing_files_models_and_arguments_are_named(tmp_path: Path) -> None:
    with pytest.raises(ToolchainError, match="does not exist"):
        build.build_with_new_head(dataclasses.replace(SPEC, weights=str(tmp_path / "no.pth")), 4, seed=0)
    with pytest.raises(ToolchainError, match="did you mean 'resnet18'"):
        build.build_untrained(ModelSpec(name="resnet_18"), 4)
    with pytest.raises(ToolchainError, match="do not suit"):
        build.build_untrained(ModelSpec(name="resnet18", arguments={"depth": 3}), 4)
    with pytest.raises(ToolchainError, match="neither a file nor the name of published weights"):
        build.build_with_new_head(ModelSpec(name="resnet18", weights="IMAGENET9K"), 4, seed=0)
    with pytest.raises(ToolchainError, match="zoo:squeezenet1_1_glyphs"):
        build.build_with_new_head(ModelSpec(name="squeezenet1_1", weights="zoo:squeezenet"), 4, seed=0)


def test_weights_that_cannot_be_downloaded_say_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    def offline(*_: object, **__: object) -> None:
        raise urllib.error.URLError("no network")

    monkeypatch.setattr(torch.hub, "download_url_to_file", offline)
    monkeypatch.setenv("TORCH_HOME", "/nonexistent")
    monkeypatch.setattr("os.makedirs", lambda *_, **__: None)
    with pytest.raises(ToolchainError, match="cannot be downloaded.*WEIGHTS=file"):
        build.build_with_new_head(ModelSpec(name="resnet18", weights="DEFAULT"), 4, seed=0)


def test_norm_epsilon_reaches_every_norm() -> None:
    model = build.build_untrained(dataclasses.replace(SPEC, norm_eps=1e-3), 4)
    epsilons = collections.Counter(m.eps for m in model.modules() if isinstance(m, torch.nn.BatchNorm2d))
    assert list(epsilons) == [1e-3]


def test_the_same_seed_gives_the_same_new_head() -> None:
    first, second = (build.build_with_new_head(SPEC, 4, seed=3)[0].classifier[1].weight for _ in range(2))
    assert torch.equal(first, second)


def fake_timm(**settings: object) -> types.ModuleType:
    """Return a stand-in for timm: two networks of torchvision under other names."""
    module = types.ModuleType("timm")

    def create(name: str, *, pretrained: bool, num_classes: int = 10) -> nn.Module:
        if pretrained and "offline" in settings:
            raise OSError("no route")
        torch.manual_seed(5)
        return build.build_untrained(ModelSpec(name="squeezenet1_1"), num_classes)

    module.list_models = lambda: ["tiny_net", "tiny_net_2"]  # type: ignore[attr-defined]
    module.create_model = create  # type: ignore[attr-defined]
    card = types.SimpleNamespace(
        mean=(0.4,) * 3, std=(0.3,) * 3, license=settings.get("license", "mit"), tag="in1k", interpolation="bicubic",
        crop_pct=settings.get("crop_pct", 0.9), crop_mode=settings.get("crop_mode", "center"),
    )  # fmt: skip
    module.get_pretrained_cfg = lambda name: card if name != "tiny_net_2" else None  # type: ignore[attr-defined]
    return module


def test_models_of_timm_come_with_their_weights_and_licence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "timm", fake_timm())
    candidate = candidates.resolve(["timm:tiny_net"])[0]
    assert (candidate.model.mean, candidate.model.licence, candidate.may_ship, candidate.trained_on) == (
        (0.4,) * 3,
        "mit",
        "yes",
        "in1k",
    )
    model, head, loaded = build.build_with_new_head(candidate.model, 3, seed=0)
    assert (loaded.source, loaded.share) == ("timm tiny_net DEFAULT", 1.0)
    assert model.get_submodule(head).out_channels == 3
    assert build.build_with_pretrained_head(candidate.model, 3, seed=0)[3]  # with the head that it was trained with
    bare = candidates.resolve(["random:timm:tiny_net_2"])[0]
    assert (bare.model.weights, bare.may_ship) == ("", "yes")
    monkeypatch.setitem(sys.modules, "timm", fake_timm(license="cc-by-nc-4.0"))
    assert candidates.resolve(["timm:tiny_net"])[0].may_ship == "no"
    monkeypatch.setitem(sys.modules, "timm", fake_timm(license=""))
    assert candidates.resolve(["timm:tiny_net"])[0].may_ship == "unknown"


def test_errors_about_timm_say_what_is_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "timm", fake_timm(offline=True))
    with pytest.raises(ToolchainError, match="no model 'tiny_nett' in timm; did you mean 'tiny_net'"):
        candidates.resolve(["timm:tiny_nett"])
    with pytest.raises(ToolchainError, match="no weights for timm:tiny_net_2"):
        candidates.resolve(["timm:tiny_net_2"])
    with pytest.raises(ToolchainError, match=r"weights of timm:tiny_net cannot be downloaded \(no route"):
        build.build_with_new_head(ModelSpec(name="timm:tiny_net", weights="DEFAULT"), 3, seed=0)
    with pytest.raises(ToolchainError, match=r"\[model\] arguments .'depth': 3. do not suit timm:tiny_net"):
        build.build_untrained(ModelSpec(name="timm:tiny_net", arguments={"depth": 3}), 3)
    monkeypatch.setitem(sys.modules, "timm", None)
    assert (
        candidates.resolve(["timm:tiny_net"])[0].name == "timm:tiny_net"
    )  # among other candidates, its row says what is missing
    with pytest.raises(ToolchainError, match=r"pip install 'edge-toolchain\[timm\]'"):
        build.build_untrained(ModelSpec(name="timm:tiny_net"), 3)
