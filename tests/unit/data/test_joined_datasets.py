"""Further sets: classes are mapped or refused, nothing of validation or test comes in, and what does not help goes."""

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
def own(domain: Domain, tmp_path: Path) -> decoded_dataset.Dataset:
    return decoded_dataset.load(domain, PREPROCESS, tmp_path / "cache")


def read(own: decoded_dataset.Dataset, folder: Path, spec: JoinSpec) -> joined_datasets.JoinedDataset:
    return joined_datasets.load(spec, Domain(name="more", path=str(folder), mode="rgb"), own, folder.parent / "cache")


def test_classes_are_mapped_and_others_dropped_only_when_told(own: decoded_dataset.Dataset, tmp_path: Path) -> None:
    folder = draw(tmp_path / "more", {"ant": 5, "wasp": 6, "dog": 7}, seed=5)
    spec = JoinSpec(domain="more", labels={"wasp": "bee"}, weight=0.5)
    with pytest.raises(ToolchainError, match="leaves out 1 of its 3 classes .'dog'.*others = \"drop\""):
        read(own, folder, spec)
    found = read(own, folder, dataclasses.replace(spec, others="drop"))
    assert torch.bincount(found.images.labels).tolist() == [5, 6]
    assert found.dropped_classes == ("dog",)
    assert set(found.images.loss_weights.tolist()) == {0.5}


def test_a_map_that_names_what_is_not_there_is_refused(own: decoded_dataset.Dataset, tmp_path: Path) -> None:
    folder = draw(tmp_path / "more", {"ant": 5, "wasp": 6})
    with pytest.raises(ToolchainError, match="names 'wsap'; did you mean 'wasp'"):
        read(own, folder, JoinSpec(domain="more", labels={"wsap": "bee"}))
    with pytest.raises(ToolchainError, match="labels.wasp = 'be'; did you mean 'bee'"):
        read(own, folder, JoinSpec(domain="more", labels={"wasp": "be"}))
    with pytest.raises(ToolchainError, match="none of its classes"):
        read(own, draw(tmp_path / "far", {"x": 3, "y": 3}), JoinSpec(domain="more", others="drop"))


def test_pictures_of_validation_and_test_do_not_come_in(own: decoded_dataset.Dataset, tmp_path: Path) -> None:
    folder = draw(tmp_path / "more", {"ant": 5, "bee": 5}, seed=5)
    for split in ("val", "test"):
        shutil.copy(own.splits[split].files[0], folder / "ant" / f"{split}.png")  # type: ignore[index]
    found = read(own, folder, JoinSpec(domain="more"))
    assert found.leaked_images == 2
    assert len(found.images) == 10


def test_other_modes_sizes_and_unreadable_files_are_no_obstacle(own: decoded_dataset.Dataset, tmp_path: Path) -> None:
    folder = draw(tmp_path / "more", {"ant": 3, "bee": 3}, size=(40, 50), seed=5)
    Image.new("CMYK", (9, 9)).save(folder / "bee" / "x.tif")
    (folder / "bee" / "bad.png").write_bytes(b"no picture")
    found = read(own, folder, JoinSpec(domain="more"))
    assert found.corrupt_files == 1
    assert found.images.pixels.shape == (7, 32, 32)


def test_a_limit_draws_evenly_from_the_classes(own: decoded_dataset.Dataset, tmp_path: Path) -> None:
    folder = draw(tmp_path / "more", {"ant": 20, "bee": 4}, seed=5)
    found = read(own, folder, JoinSpec(domain="more", images=8))
    assert torch.bincount(found.images.labels).tolist() == [4, 4]


def test_mixing_adds_to_training_alone(own: decoded_dataset.Dataset, tmp_path: Path) -> None:
    found = read(own, draw(tmp_path / "more", {"ant": 5, "bee": 5}, seed=5), JoinSpec(domain="more"))
    both = joined_datasets.add_to_training(own, found)
    assert len(both.splits["train"]) == len(own.splits["train"]) + 10
    assert both.splits["val"] is own.splits["val"]
    assert both.splits["test"] is own.splits["test"]
    assert both.digest != own.digest
    assert torch.equal(
        both.splits["train"].pixels[list(own.calibration_rows)], own.splits["train"].pixels[list(own.calibration_rows)]
    )


def test_a_set_that_misleads_is_dropped_and_one_that_teaches_stays(
    own: decoded_dataset.Dataset, tmp_path: Path
) -> None:
    train = own.splits["train"]
    rows = [int(row) for label in range(3) for row in torch.nonzero(train.labels == label)[:4]]
    few = dataclasses.replace(own, splits={**own.splits, "train": train.select(rows)}, calibration_rows=(0, 1))
    recipe = dataclasses.replace(tiny_recipe(), adapt=TrainSpec(epochs=5, batch_size=4, learning_rate=5e-4))
    folder = draw(tmp_path / "more", {"ant": 40, "bee": 40, "cat": 40}, seed=5)
    wrong = {"ant": "bee", "bee": "cat", "cat": "ant"}
    bad = read(few, folder, JoinSpec(domain="wrong", labels=wrong))
    good = read(few, folder, JoinSpec(domain="right"))
    found = finetune.run(job_of(recipe, out=tmp_path / "work"), few, [bad, good])
    assert [(trial.name, trial.kept) for trial in found.join_trials] == [("wrong", False), ("right", True)]
    assert found.join_trials[0].gain.estimate <= 0 < found.join_trials[1].gain.estimate
    assert found.join_trials[0].gain.samples == len(own.splits["val"])
    assert len(found.dataset.splits["train"]) == 12 + 120


def test_a_corrected_label_makes_another_set(own: decoded_dataset.Dataset, tmp_path: Path) -> None:
    folder = draw(tmp_path / "more", {"ant": 5, "bee": 5}, seed=5)
    before = read(own, folder, JoinSpec(domain="more"))
    (folder / "ant" / "004.png").rename(folder / "bee" / "-1.png")  # the last of one is now the first of the other
    after = read(own, folder, JoinSpec(domain="more"))
    assert torch.bincount(after.images.labels).tolist() == [4, 6]
    assert after.digest != before.digest


def test_a_set_without_a_folder_is_told_how_to_get_one(own: decoded_dataset.Dataset, tmp_path: Path) -> None:
    with pytest.raises(ToolchainError, match=r"join 'more': .*give path in \[\[join\]\]"):
        joined_datasets.load(JoinSpec(domain="more"), Domain(name="more"), own, tmp_path)
