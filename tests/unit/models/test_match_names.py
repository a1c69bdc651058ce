"""Checkpoints with other names, of wrapped models and training frameworks, load; what was changed and what lacks is said."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from toolchain.config.recipe import ModelSpec
from toolchain.core.errors import ToolchainError
from toolchain.models import build
from toolchain.models.weights import LoadedWeights

SPEC = ModelSpec(name="mobilenet_v2", arguments={"width_mult": 0.25})
State = dict[str, Tensor]


def make_state(seed: int = 5) -> State:
    torch.manual_seed(seed)
    return dict(build.build_untrained(SPEC, 9).state_dict())


def with_prefix(prefix: str, state: Mapping[str, Tensor]) -> State:
    return {prefix + name: tensor for name, tensor in state.items()}


def load(folder: Path, content: Any, spec: ModelSpec = SPEC) -> tuple[nn.Module, LoadedWeights]:
    torch.save(content, folder / "w.pth")
    model, _, loaded = build.build_with_new_head(dataclasses.replace(spec, weights=str(folder / "w.pth")), 4, seed=0)
    return model, loaded


def check_backbone(model: nn.Module, state: State) -> None:
    for name, tensor in model.state_dict().items():
        if not name.startswith("classifier"):
            assert torch.equal(tensor, state[name]), name


@pytest.mark.parametrize(
    "prefix",
    ["module.", "_orig_mod.", "module._orig_mod.", "model.", "backbone.", "net.", "encoder.", "student.0.backbone.",
     "module.encoder_q."],
)  # fmt: skip
def test_a_prefix_is_removed_and_named(tmp_path: Path, prefix: str) -> None:
    model, loaded = load(tmp_path, with_prefix(prefix, make_state()))
    check_backbone(model, make_state())
    assert str(loaded) == f"w.pth: 100% of the backbone loaded; prefix {prefix!r} removed from the names"
    assert loaded.name_changes == (f"prefix {prefix!r} removed from the names",)


@pytest.mark.parametrize("key", ["state_dict", "model", "ema", "net", "model_state_dict", "teacher", "weights_of_mine"])
def test_a_nested_state_dict_with_a_prefix_is_taken_and_named(tmp_path: Path, key: str) -> None:
    content = {"epoch": 3, key: with_prefix("model.", make_state()), "hyper_parameters": {"lr": 0.1}}
    model, loaded = load(tmp_path, content)
    check_backbone(model, make_state())
    assert str(loaded) == f"w.pth: 100% of the backbone loaded from its {key!r}; prefix 'model.' removed from the names"


def test_the_state_dict_that_fits_is_taken_and_an_equal_one_is_named(tmp_path: Path) -> None:
    other = dict(build.build_untrained(ModelSpec(name="squeezenet1_1"), 9).state_dict())
    teacher, student = with_prefix("backbone.", make_state(1)), with_prefix("module.backbone.", make_state(2))
    content = {"detector": other | with_prefix("more.", other), "student": student, "teacher": teacher}
    optimizer = {"state": {0: {"exp_avg": torch.ones(3)}}, "param_groups": []}
    model, loaded = load(tmp_path, {"optimizer": optimizer, **content})
    check_backbone(model, make_state(2))
    assert (loaded.key, loaded.other_keys) == ("student", ("teacher",))
    assert "from its 'student' (it also holds 'teacher': to use that, save it as a file of its own)" in str(loaded)


def test_a_file_that_fits_as_it_is_is_not_searched_further(tmp_path: Path) -> None:
    cut = {name: tensor for name, tensor in make_state(1).items() if not name.startswith("features.2.")}
    model, loaded = load(tmp_path, {**cut, "ema": with_prefix("model.", make_state(2))})
    assert torch.equal(model.state_dict()["features.0.0.weight"], make_state(1)["features.0.0.weight"])
    assert (loaded.key, loaded.name_changes, loaded.other_keys) == ("", (), ("ema",))


def test_names_that_are_prefixed_in_part_load_whole(tmp_path: Path) -> None:
    state = {
        f"module.{name}" if name.startswith("features.1.") else name: tensor for name, tensor in make_state().items()
    }
    assert 0 < sum(name.startswith("module.") for name in state) < len(state) / 2
    model, loaded = load(tmp_path, state)
    check_backbone(model, make_state())
    assert (loaded.share, loaded.unexpected) == (1.0, ())


def test_of_two_networks_under_the_same_names_the_one_with_the_models_shapes_is_taken(tmp_path: Path) -> None:
    large = build.build_untrained(ModelSpec(name="mobilenet_v2", arguments={"width_mult": 0.5}), 9).state_dict()
    model, loaded = load(tmp_path, with_prefix("teacher.", large) | with_prefix("student.", make_state()))
    check_backbone(model, make_state())
    assert loaded.name_changes == ("prefix 'student.' removed from the names",)


def test_wrapped_parts_of_a_model_are_unwrapped(tmp_path: Path) -> None:
    state = {name.replace("features.", "features.module._orig_mod."): tensor for name, tensor in make_state().items()}
    model, loaded = load(tmp_path, with_prefix("model.", state))
    check_backbone(model, make_state())
    assert loaded.name_changes == (
        "prefix 'model.' removed from the names", "'module.' and '_orig_mod.' removed inside the names",
    )  # fmt: skip


def test_old_names_of_densenets_are_renewed(tmp_path: Path) -> None:
    spec = ModelSpec(name="densenet121")
    state = dict(build.build_untrained(spec, 9).state_dict())
    old = {
        name if "denselayer" not in name else name.replace("norm1", "norm.1").replace("norm2", "norm.2")
        .replace("conv1", "conv.1").replace("conv2", "conv.2"): tensor
        for name, tensor in state.items()
    }  # fmt: skip
    _, loaded = load(tmp_path, old, spec)
    assert (loaded.share, loaded.unexpected) == (1.0, ())
    assert loaded.name_changes == ("old names of torchvision's densenets renewed",)


def test_a_prefix_does_not_make_another_architecture_fit(tmp_path: Path) -> None:
    other = build.build_untrained(ModelSpec(name="squeezenet1_1"), 9).state_dict()
    with pytest.raises(ToolchainError, match="w.pth does not fit mobilenet_v2: only 0%"):
        load(tmp_path, {"state_dict": with_prefix("model.", other)})


def test_a_missing_head_is_said(tmp_path: Path) -> None:
    state = {name: tensor for name, tensor in make_state().items() if name.startswith("features")}
    _, loaded = load(tmp_path, with_prefix("backbone.", state))
    assert loaded.lacks_head
    assert str(loaded).endswith("; prefix 'backbone.' removed from the names; it has no head, so the head is new")
    assert not load(tmp_path, make_state())[1].lacks_head


def test_half_precision_becomes_float32(tmp_path: Path) -> None:
    half = {name: tensor.half() if tensor.is_floating_point() else tensor for name, tensor in make_state().items()}
    model, loaded = load(tmp_path, half)
    assert loaded.share == 1.0
    assert {tensor.dtype for tensor in model.parameters()} == {torch.float32}
    assert torch.equal(model.features[0][0].weight, half["features.0.0.weight"].float())


def test_missing_running_statistics_are_accepted_with_a_warning(tmp_path: Path) -> None:
    state = {name: tensor for name, tensor in make_state().items() if "running_" not in name}
    model, loaded = load(tmp_path, state)
    layers = [name for name, module in model.named_modules() if isinstance(module, nn.BatchNorm2d)]
    assert sorted(loaded.layers_without_statistics) == sorted(layers)
    assert "Warning: it lacks the running statistics (running_mean, running_var) of the batch-norm layers " in str(
        loaded
    )
    assert f" and {len(layers) - 2} more, which start from mean 0" in str(loaded)
    assert "missing: " not in str(loaded)


def test_a_layer_that_lacks_everything_is_missing_and_no_warning(tmp_path: Path) -> None:
    state = {name: tensor for name, tensor in make_state().items() if not name.startswith("features.1.")}
    _, loaded = load(tmp_path, state)
    assert loaded.layers_without_statistics == ()
    assert "missing: features.1." in str(loaded)
    assert "Warning" not in str(loaded)


def test_quantized_weights_are_refused(tmp_path: Path) -> None:
    state = make_state()
    state["features.0.0.weight"] = state["features.0.0.weight"].to(torch.int8)
    with pytest.raises(ToolchainError, match=r"features.0.0.weight holds int8 values.* float checkpoint"):
        load(tmp_path, state)


def test_the_record_of_a_plain_checkpoint_says_nothing_new(tmp_path: Path) -> None:
    save_file(make_state(), tmp_path / "w.safetensors")
    spec = dataclasses.replace(SPEC, weights=str(tmp_path / "w.safetensors"))
    _, _, loaded = build.build_with_new_head(spec, 4, seed=0)
    assert str(loaded) == "w.safetensors: 100% of the backbone loaded"
    assert loaded == LoadedWeights("w.safetensors", loaded.sha256, 1.0, (), (), ())


def test_a_folder_in_place_of_a_file_lists_its_checkpoints(tmp_path: Path) -> None:
    for name in ("model.safetensors", "config.json"):
        (tmp_path / name).touch()
    with pytest.raises(
        ToolchainError, match=r"is a folder, not a checkpoint file; give one of those in it: model.safetensors$"
    ):
        build.build_with_new_head(dataclasses.replace(SPEC, weights=f"{tmp_path}/"), 4, seed=0)
