"""Joined datasets: classes are mapped or rejected, images of validation and test are left out, as is a dataset that does not help."""

import dataclasses
import shutil
from pathlib import Path

import pytest
import torch
from conftest import draw, job_of, tiny_recipe
from PIL import Image

from toolchain.config.dataset import Domain
from toolchain.config.recipe import JoinSpec, TrainSpec
from toolchain.core.errors import ToolchainError
from toolchain.core.types import Preprocessing
from toolchain.data import decoded_dataset, joined_datasets
from toolchain.training import finetune

PREPROCESS = Preprocessing(image_size=(32, 32), mode="gray", mean=(0.5,) * 3, std=(0.5,) * 3)


@pytest.fixture
def dataset(domain: Domain, tmp_path: Path) -> decoded_dataset.Dataset:
    return decoded_dataset.load(domain, PREPROCESS, tmp_path / "cache")


def load(dataset: decoded_dataset.Dataset, folder: Path, spec: JoinSpec) -> joined_datasets.JoinedDataset:
    return joined_datasets.load(
        spec, Domain(name="more", path=str(folder), mode="rgb"), dataset, folder.parent / "cache"
    )


def test_classes_are_mapped_and_others_dropped_only_when_told(dataset: decoded_dataset.Dataset, tmp_path: Path) -> None:
    folder = draw(tmp_path / "more", {"ant": 5, "wasp": 6, "dog": 7}, seed=5)
    spec = JoinSpec(domain="more", labels={"wasp": "bee"}, weight=0.5)
    with pytest.raises(ToolchainError, match="leaves out 1 of its 3 classes .'dog'.*others = \"drop\""):
        load(dataset, folder, spec)
    joined = load(dataset, folder, dataclasses.replace(spec, others="drop"))
    assert torch.bincount(joined.images.labels).tolist() == [5, 6]
    assert joined.dropped_classes == ("dog",)
    assert set(joined.images.loss_weights.tolist()) == {0.5}


def test_a_label_map_with_an_unknown_class_is_rejected(dataset: decoded_dataset.Dataset, tmp_path: Path) -> None:
    folder = draw(tmp_path / "more", {"ant": 5, "wasp": 6})
    with pytest.raises(ToolchainError, match="names 'wsap'; did you mean 'wasp'"):
        load(dataset, folder, JoinSpec(domain="more", labels={"wsap": "bee"}))
    with pytest.raises(ToolchainError, match="labels.wasp = 'be'; did you mean 'bee'"):
        load(dataset, folder, JoinSpec(domain="more", labels={"wasp": "be"}))
    with pytest.raises(ToolchainError, match="none of its classes"):
        load(dataset, draw(tmp_path / "far", {"x": 3, "y": 3}), JoinSpec(domain="more", others="drop"))


def test_images_of_validation_and_test_are_left_out(dataset: decoded_dataset.Dataset, tmp_path: Path) -> None:
    folder = draw(tmp_path / "more", {"ant": 5, "bee": 5}, seed=5)
    for split in ("val", "test"):
        shutil.copy(dataset.splits[split].files[0], folder / "ant" / f"{split}.png")  # type: ignore[index]
    joined = load(dataset, folder, JoinSpec(domain="more"))
    assert joined.leaked_images == 2
    assert len(joined.images) == 10


def test_other_modes_sizes_and_unreadable_files_are_no_obstacle(
    dataset: decoded_dataset.Dataset, tmp_path: Path
) -> None:
    folder = draw(tmp_path / "more", {"ant": 3, "bee": 3}, size=(40, 50), seed=5)
    Image.new("CMYK", (9, 9)).save(folder / "bee" / "x.tif")
    (folder / "bee" / "bad.png").write_bytes(b"no picture")
    joined = load(dataset, folder, JoinSpec(domain="more"))
    assert joined.corrupt_files == 1
    assert joined.images.pixels.shape == (7, 32, 32)


def test_a_limit_samples_evenly_from_the_classes(dataset: decoded_dataset.Dataset, tmp_path: Path) -> None:
    folder = draw(tmp_path / "more", {"ant": 20, "bee": 4}, seed=5)
    joined = load(dataset, folder, JoinSpec(domain="more", images=8))
    assert torch.bincount(joined.images.labels).tolist() == [4, 4]


def test_joining_adds_to_training_only(dataset: decoded_dataset.Dataset, tmp_path: Path) -> None:
    joined = load(dataset, draw(tmp_path / "more", {"ant": 5, "bee": 5}, seed=5), JoinSpec(domain="more"))
    both = joined_datasets.add_to_training(dataset, joined)
    assert len(both.splits["train"]) == len(dataset.splits["train"]) + 10
    assert both.splits["val"] is dataset.splits["val"]
    assert both.splits["test"] is dataset.splits["test"]
    assert both.digest != dataset.digest
    assert torch.equal(
        both.splits["train"].pixels[list(dataset.calibration_rows)],
        dataset.splits["train"].pixels[list(dataset.calibration_rows)],
    )


def test_a_dataset_that_misleads_is_dropped_and_one_that_helps_is_kept(
    dataset: decoded_dataset.Dataset, tmp_path: Path
) -> None:
    train = dataset.splits["train"]
    rows = [int(row) for label in range(3) for row in torch.nonzero(train.labels == label)[:4]]
    few = dataclasses.replace(dataset, splits={**dataset.splits, "train": train.select(rows)}, calibration_rows=(0, 1))
    recipe = dataclasses.replace(tiny_recipe(), adapt=TrainSpec(epochs=5, batch_size=4, learning_rate=5e-4))
    folder = draw(tmp_path / "more", {"ant": 40, "bee": 40, "cat": 40}, seed=5)
    wrong = {"ant": "bee", "bee": "cat", "cat": "ant"}
    misleading = load(few, folder, JoinSpec(domain="wrong", labels=wrong))
    helpful = load(few, folder, JoinSpec(domain="right"))
    joined = finetune.run(job_of(recipe, out=tmp_path / "work"), few, [misleading, helpful])
    assert [(trial.name, trial.kept) for trial in joined.join_trials] == [("wrong", False), ("right", True)]
    assert joined.join_trials[0].gain.estimate <= 0 < joined.join_trials[1].gain.estimate
    assert joined.join_trials[0].gain.samples == len(dataset.splits["val"])
    assert len(joined.dataset.splits["train"]) == 12 + 120


def test_a_corrected_label_changes_the_digest(dataset: decoded_dataset.Dataset, tmp_path: Path) -> None:
    folder = draw(tmp_path / "more", {"ant": 5, "bee": 5}, seed=5)
    before = load(dataset, folder, JoinSpec(domain="more"))
    (folder / "ant" / "004.png").rename(folder / "bee" / "-1.png")  # the last of one is now the first of the other
    after = load(dataset, folder, JoinSpec(domain="more"))
    assert torch.bincount(after.images.labels).tolist() == [4, 6]
    assert after.digest != before.digest


def test_a_dataset_without_a_folder_says_how_to_give_one(dataset: decoded_dataset.Dataset, tmp_path: Path) -> None:
    with pytest.raises(ToolchainError, match=r"join 'more': .*give path in \[\[join\]\]"):
        joined_datasets.load(JoinSpec(domain="more"), Domain(name="more"), dataset, tmp_path)
