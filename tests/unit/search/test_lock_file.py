"""A lock: written, read, replayed without a search, and refused for another model or other settings."""

import dataclasses
import json
from pathlib import Path

import pytest
import torch
from conftest import job_of
from torch import nn

from toolchain.config import read_config
from toolchain.config.recipe import AugmentSpec, Budget, ModelSpec, PruneSpec, Recipe
from toolchain.core import registry
from toolchain.core.errors import ToolchainError
from toolchain.core.types import Preprocessing
from toolchain.data.decoded_dataset import Dataset, Images
from toolchain.models import profile
from toolchain.pruning import search_space, surgery
from toolchain.quantization import placement_result
from toolchain.quantization.placement import Placement
from toolchain.search import lock_file, search_pruning
from toolchain.search.pruning_plan import Lock, PruningPlan
from toolchain.training import trained_model
from toolchain.training.finetune import FinetunedModel

IMAGE = torch.zeros(1, 3, 8, 8)
OUT = Path("out")
TARGET = dataclasses.replace(read_config.read_target("cpu"), alignment=4)
RECIPE = Recipe(name="r", domain="d", model=ModelSpec(name="m"), prune=PruneSpec(ratio=0.3))
OWN = Placement(float_modules=("0",), float_operations=())


def net(seed: int = 0, classes: int = 2, width: int = 16) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Conv2d(3, width, 3), nn.BatchNorm2d(width), nn.ReLU(), nn.Conv2d(width, 12, 3), nn.ReLU(), nn.Flatten(),
        nn.Linear(12 * 16, classes),
    ).eval()  # fmt: skip


def adapted(model: nn.Module, key: str = "dense") -> FinetunedModel:
    pixels = torch.zeros((4, 8, 8, 3), dtype=torch.uint8)
    train = Images(pixels, torch.tensor([0, 1, 0, 1]), tuple(Path(str(i)) for i in range(4)), torch.ones(4))
    preprocess = Preprocessing(image_size=(8, 8), mode="rgb", mean=(0.5,) * 3, std=(0.2,) * 3)
    data = Dataset(("a", "b"), {"train": train}, preprocess, "data", (0, 1), "drawn", ())
    return FinetunedModel(trained_model.TrainedModel(model, key, {}, 0.0), "6", data, AugmentSpec(), (), ())


@pytest.fixture
def written(tmp_path: Path) -> Path:
    whole = adapted(net())
    job = job_of(RECIPE, TARGET, out=tmp_path)
    plan = search_pruning.run(job, whole)
    placed = {
        "dense": placement_result.PlacementResult(OWN, "", (), 0.0),
        "pruned": placement_result.PlacementResult(Placement(), "", (), 0.0),
    }
    lock_file.record_plan(job, plan, whole.trained, placed, (8, 8))
    return job.folder / "r.cpu.lock.json"


def replay(path: Path, model: FinetunedModel, work: Path) -> PruningPlan:
    lock = lock_file.find(job_of(RECIPE, TARGET, out=OUT, lock_file=path))
    return search_pruning.run(job_of(RECIPE, TARGET, out=work), model, lock)


def test_the_same_weights_get_the_same_channels_without_a_search(
    written: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    planned = search_pruning.run(job_of(RECIPE, TARGET, out=tmp_path / "work"), adapted(net()))
    monkeypatch.setattr(search_space, "plan_for_ratio", None)
    monkeypatch.setattr(search_space, "build_search_space", None)
    again = replay(written, adapted(net()), tmp_path / "elsewhere")
    assert again.removes_anything
    assert again.surgery == planned.surgery
    assert again.decided_placements == {"dense": OWN, "pruned": Placement()}


def test_other_weights_get_the_same_widths_and_their_own_channels(written: Path, tmp_path: Path) -> None:
    first = lock_file.read(written).surgery
    other = replay(written, adapted(net(seed=5, classes=3), "other"), tmp_path / "elsewhere").surgery
    old, new = (
        {(name, d): list(i) for name, rows in one.keep.items() for d, i in rows.items()} for one in (first, other)
    )
    assert {where: len(i) for where, i in new.items()} == {where: len(i) for where, i in old.items()}
    assert new != old
    surgery.apply(net(seed=5, classes=3), other)(IMAGE)


def test_another_model_is_refused_by_its_first_other_layer(written: Path, tmp_path: Path) -> None:
    with pytest.raises(ToolchainError, match=r"layer 0 is spatial, 3 -> 16; here it is spatial, 3 -> 20"):
        replay(written, adapted(net(width=20)), tmp_path)


def test_another_image_size_is_refused(written: Path) -> None:
    lock = lock_file.read(written)
    with pytest.raises(ToolchainError, match="made for images of 8x8, these are 16x8"):
        lock_file.check_model(lock, lock.layers, (16, 8))


@pytest.mark.parametrize(
    ("recipe", "budget", "said"),
    [
        (dataclasses.replace(RECIPE, prune=PruneSpec(ratio=0.5)), Budget(), "prune.ratio = 0.3, now it is 0.5"),
        (RECIPE, Budget(latency="0.5x"), "budget.latency = None, now it is '0.5x'"),
    ],
)
def test_other_settings_leave_it_aside_or_are_refused_where_it_was_named(
    written: Path, recipe: Recipe, budget: Budget, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(ToolchainError, match=said):
        lock_file.find(job_of(recipe, TARGET, out=OUT, budget=budget, lock_file=written))
    assert lock_file.find(job_of(recipe, TARGET, out=OUT, budget=budget, recipe_folder=written.parent)) is None
    assert said in capsys.readouterr().out


def test_a_lock_from_before_a_setting_existed_is_one_for_its_default(written: Path) -> None:
    content = json.loads(written.read_text())
    del content["asked"]["prune.resolution"]
    written.write_text(json.dumps(content))
    assert lock_file.find(job_of(RECIPE, TARGET, out=OUT, lock_file=written)) is not None
    small = dataclasses.replace(RECIPE, prune=dataclasses.replace(RECIPE.prune, resolution=0.5))
    with pytest.raises(ToolchainError, match=r"prune\.resolution = 1\.0, now it is 0\.5"):
        lock_file.find(job_of(small, TARGET, out=OUT, lock_file=written))


def test_one_beside_the_recipe_is_found_by_recipe_and_target(written: Path) -> None:
    found = lock_file.find(job_of(RECIPE, TARGET, out=OUT, recipe_folder=written.parent))
    assert found == lock_file.read(written)
    assert (
        lock_file.find(job_of(dataclasses.replace(RECIPE, name="other"), TARGET, out=OUT, recipe_folder=written.parent))
        is None
    )


def test_a_lock_for_another_target_of_the_same_runtime_is_refused(written: Path) -> None:
    with pytest.raises(ToolchainError, match=r"made for the target cpu \(onnxruntime\), this is mine"):
        lock_file.find(job_of(RECIPE, dataclasses.replace(TARGET, name="mine"), out=OUT, lock_file=written))


def test_a_lock_for_another_target_is_refused(written: Path) -> None:
    with pytest.raises(ToolchainError, match=r"made for the target cpu \(onnxruntime\), this is openvino"):
        lock_file.find(job_of(RECIPE, read_config.read_target("openvino"), out=OUT, lock_file=written))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda content: content.clear(), "is not a lock"),
        (lambda content: content.update(schema=9), "schema = 9"),
        (lambda content: content.pop("layers"), "layers"),
        (lambda content: content.update(extra=1), "extra"),
        (lambda content: content.update(fitted={"limit": 0.5}), "fitted.latency is missing"),
        (lambda content: content["surgery"].update(keep={"0.weight": {"0": ["x"]}}), "surgery.keep"),
    ],
)
def test_a_broken_lock_is_named(written: Path, change, said: str) -> None:
    content = json.loads(written.read_text())
    change(content)
    written.write_text(json.dumps(content))
    with pytest.raises(ToolchainError, match=said) as raised:
        lock_file.find(job_of(RECIPE, TARGET, out=OUT, lock_file=written))
    assert written.name in str(raised.value)


def test_a_file_that_is_no_json_is_not_asked_to_be_removed(tmp_path: Path) -> None:
    (tmp_path / "own.toml").write_text("schema = 1")
    with pytest.raises(ToolchainError, match="own.toml is not a lock. `toolchain export` writes"):
        lock_file.find(job_of(RECIPE, TARGET, out=OUT, lock_file=tmp_path / "own.toml"))


def test_a_lock_that_is_not_there_is_said(tmp_path: Path) -> None:
    with pytest.raises(ToolchainError, match="cannot read"):
        lock_file.find(job_of(RECIPE, TARGET, out=OUT, lock_file=tmp_path / "none.json"))


def test_what_is_read_is_what_was_written(written: Path, tmp_path: Path) -> None:
    lock = lock_file.read(written)
    assert isinstance(lock, Lock)
    assert {"torch", "onnxruntime"} <= set(lock.versions)
    lock_file.write(tmp_path / "again.json", lock)
    assert (tmp_path / "again.json").read_bytes() == written.read_bytes()


@pytest.mark.parametrize(("model", "size"), [(net(width=20), (8, 8)), (net(), (9, 9))])
def test_one_that_only_lies_beside_the_recipe_gives_way_to_another_model(
    written: Path, model: nn.Sequential, size: tuple[int, int], capsys: pytest.CaptureFixture[str]
) -> None:
    lock, layers = lock_file.read(written), profile.measure_layers(model, IMAGE)
    assert lock_file.match_model(lock, profile.measure_layers(net(), IMAGE), (8, 8), named=False) is lock
    assert lock_file.match_model(None, layers, size, named=False) is None
    assert lock_file.match_model(lock, layers, size, named=False) is None
    assert "lock: not used: the lock was made for " in capsys.readouterr().out
    with pytest.raises(ToolchainError, match="the lock was made for"):
        lock_file.match_model(lock, layers, size, named=True)


def test_the_shipped_recipes_bring_locks_of_their_own_settings() -> None:
    found = sorted((registry.PACKAGE_FOLDER / "recipes").glob("*.lock.json"))
    assert found
    for path in found:
        recipe, target = (
            read_config.read_recipe(path.name.split(".")[0]),
            read_config.read_target(path.name.split(".")[1]),
        )
        assert lock_file.find(job_of(recipe, target, out=OUT, recipe_folder=path.parent)) is not None
