"""The plan of a criterion that asks the loss is made on the calibration images, and made anew when they change."""

import dataclasses
from pathlib import Path

import pytest
import torch
from conftest import job_of
from torch import Tensor, nn

from toolchain.config import read_config
from toolchain.config.recipe import AugmentSpec, ModelSpec, PruneSpec, Recipe
from toolchain.core import registry
from toolchain.core.types import Preprocessing
from toolchain.data import loader
from toolchain.data.decoded_dataset import Dataset, Images
from toolchain.pruning import gradients, search_space
from toolchain.search import search_pruning
from toolchain.training import trained_model
from toolchain.training.finetune import FinetunedModel

IMAGE = torch.zeros(1, 3, 8, 8)
TARGET = dataclasses.replace(read_config.read_target("cpu"), alignment=4)


@pytest.fixture
def adapted() -> FinetunedModel:
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(3, 16, 3), nn.BatchNorm2d(16), nn.ReLU(), nn.Conv2d(16, 12, 3), nn.ReLU(), nn.Flatten(),
        nn.Linear(12 * 16, 2),
    ).eval()  # fmt: skip
    pixels, labels = torch.randint(0, 255, (40, 8, 8, 3), dtype=torch.uint8), torch.randint(2, (40,))
    train = Images(pixels, labels, tuple(Path(str(i)) for i in range(40)), torch.ones(40))
    preprocess = Preprocessing(image_size=(8, 8), mode="rgb", mean=(0.5,) * 3, std=(0.2,) * 3)
    data = Dataset(("a", "b"), {"train": train}, preprocess, "data", tuple(range(0, 40, 2)), "drawn", ())
    return FinetunedModel(trained_model.TrainedModel(net, "dense", {}, 0.0), "6", data, AugmentSpec(), (), ())


def recipe(criterion: str) -> Recipe:
    return Recipe(name="r", domain="d", model=ModelSpec(name="m"), prune=PruneSpec(ratio=0.3, criterion=criterion))


def by_hand(adapted: FinetunedModel, criterion: str, rows: tuple[int, ...]) -> dict[str, dict[int, list[int]]]:
    train = adapted.dataset.splits["train"]
    x: Tensor = loader.normalise(train.pixels[list(rows)], adapted.dataset.preprocess)
    planned = search_space.plan_for_ratio(
        adapted.trained.model, IMAGE, head="6", spec=recipe(criterion).prune, alignment=4,
        criterion=registry.load_module("criteria", criterion).score,
        gradients=gradients.collect(adapted.trained.model, [(x, train.labels[list(rows)])]),
    )  # fmt: skip
    return {name: {d: list(i) for d, i in kept.items()} for name, kept in planned.keep.items()}


@pytest.mark.parametrize("name", registry.list_modules("criteria"))
def test_gradients_are_those_of_the_calibration_images(name: str, adapted: FinetunedModel, tmp_path: Path) -> None:
    done = search_pruning.run(job_of(recipe(name), TARGET, out=tmp_path), adapted)
    kept = {tensor: {d: list(i) for d, i in rows.items()} for tensor, rows in done.surgery.keep.items()}
    assert done.removes_anything
    assert kept == by_hand(adapted, name, adapted.dataset.calibration_rows)
    if registry.load_module("criteria", name).NEEDS:  # other images would have ranked differently here
        assert kept != by_hand(adapted, name, tuple(range(1, 40, 2)))


@pytest.mark.parametrize("name", registry.list_modules("criteria"))
def test_other_calibration_images_plan_anew_only_where_they_are_looked_at(
    name: str, adapted: FinetunedModel, tmp_path: Path
) -> None:
    first = search_pruning.run(job_of(recipe(name), TARGET, out=tmp_path), adapted)
    drawn = dataclasses.replace(adapted.dataset, calibration_rows=(1, 3, 5), calibration_digest="others")
    again = search_pruning.run(job_of(recipe(name), TARGET, out=tmp_path), dataclasses.replace(adapted, dataset=drawn))
    assert (first.key != again.key) == bool(registry.load_module("criteria", name).NEEDS)
