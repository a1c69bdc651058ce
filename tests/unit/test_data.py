"""Folders to datasets: right splits, right pixels, and clear refusals that name the file or the class."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import draw
from PIL import Image

from toolchain import data, runner
from toolchain.errors import ToolchainError
from toolchain.values import AugmentSpec, Domain, Preprocess

PREPROCESS = Preprocess(image_size=(32, 32), mode="gray", mean=(0.5, 0.4, 0.3), std=(0.2, 0.3, 0.5))


def load(domain: Domain, tmp_path: Path, preprocess: Preprocess = PREPROCESS) -> data.Dataset:
    return data.load(domain, preprocess, tmp_path / "cache")


def test_a_folder_is_split_the_same_way_every_time_and_by_class(domain: Domain, tmp_path: Path) -> None:
    first, again = load(domain, tmp_path), data.load(domain, PREPROCESS, tmp_path / "elsewhere")
    assert first.digest == again.digest
    assert {name: len(part) for name, part in first.splits.items()} == {"train": 81, "val": 15, "test": 24}
    assert torch.bincount(first.splits["test"].labels).tolist() == [8, 8, 8]
    files = [set(part.files) for part in first.splits.values()]
    assert not files[0] & files[1] | files[1] & files[2] | files[0] & files[2]
    assert first.splits["test"].files == again.splits["test"].files


def test_given_splits_are_kept_and_validation_comes_from_training(tmp_path: Path) -> None:
    draw(tmp_path / "set" / "train", {"ant": 20, "bee": 20})
    draw(tmp_path / "set" / "test", {"ant": 4, "bee": 6}, seed=1)
    found = load(Domain(name="x", path=str(tmp_path / "set"), mode="gray"), tmp_path)
    assert [len(found.splits[split]) for split in data.SPLITS] == [34, 6, 10]


def test_training_and_serving_see_the_same_pixels(domain: Domain, tmp_path: Path) -> None:
    test = load(domain, tmp_path).splits["test"]
    trained, _ = next(data.batches(test, PREPROCESS, 5))
    manifest = dataclasses.asdict(PREPROCESS)
    served = np.concatenate([runner.prepare(file, manifest) for file in test.files[:5]])
    assert np.array_equal(trained.numpy(), served)


def test_the_cache_is_used_and_follows_the_content(
    domain: Domain, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = load(domain, tmp_path)
    monkeypatch.setattr(runner, "read_picture", lambda *_: pytest.fail("decoded again"))
    assert load(domain, tmp_path).digest == first.digest
    monkeypatch.undo()
    Image.fromarray(np.zeros((12, 10), np.uint8)).save(first.splits["train"].files[0])
    assert load(domain, tmp_path).digest != first.digest


def test_shuffling_depends_on_the_seed_alone(domain: Domain, tmp_path: Path) -> None:
    train = load(domain, tmp_path).splits["train"]

    def epoch(seed: int) -> torch.Tensor:
        spec = AugmentSpec(horizontal_flip=True, shift=0.1, rotate_degrees=5.0, brightness=0.1)
        return torch.cat([x for x, _ in data.batches(train, PREPROCESS, 16, seed=seed, augment=spec)])

    assert torch.equal(epoch(3), epoch(3))
    assert not torch.equal(epoch(3), epoch(4))


def test_augmentation_without_strength_changes_nothing() -> None:
    images = torch.randn(6, 3, 20, 12)
    assert torch.equal(data.augmented(images, AugmentSpec(), torch.Generator()), images)
    spun = data.augmented(images, AugmentSpec(rotate_degrees=1e-6), torch.Generator())
    torch.testing.assert_close(spun, images, atol=1e-3, rtol=0)


def broken(folder: Path, how: str) -> Path:
    path = folder / "bee" / "000.png"
    body = path.read_bytes()
    path.write_bytes({"truncated": body[: len(body) // 2], "empty": b"", "text": b"not a picture"}[how])
    return path


@pytest.mark.parametrize("how", ["truncated", "empty", "text"])
def test_a_corrupt_picture_is_named(domain: Domain, pictures: Path, tmp_path: Path, how: str) -> None:
    path = broken(pictures, how)
    with pytest.raises(ToolchainError, match=f"{path.name} is not a readable picture.*on_corrupt"):
        load(domain, tmp_path)


def test_corrupt_pictures_can_be_skipped_and_are_reported(domain: Domain, pictures: Path, tmp_path: Path) -> None:
    path = broken(pictures, "truncated")
    found = load(dataclasses.replace(domain, on_corrupt="skip"), tmp_path)
    assert found.skipped == (str(path),)
    assert sum(len(part) for part in found.splits.values()) == 119


@pytest.mark.parametrize("mode", ["I;16", "RGBA", "CMYK", "P", "1", "LA"])
def test_unusual_pictures_become_eight_bit(tmp_path: Path, mode: str) -> None:
    if mode == "I;16":
        Image.fromarray(np.full((9, 7), 128 << 8, np.uint16)).save(tmp_path / "x.png")
    else:
        Image.new("L", (7, 9), 128).convert(mode).save(tmp_path / ("x.tif" if mode == "CMYK" else "x.png"))
    found = runner.read_picture(next(tmp_path.glob("x.*")), "gray")
    assert found.shape == (9, 7)
    assert found.dtype == np.uint8
    assert mode == "1" or abs(int(found.mean()) - 128) <= 1


def test_exif_rotation_is_applied(tmp_path: Path) -> None:
    picture = Image.new("L", (20, 10))
    exif = picture.getexif()
    exif[0x0112] = 6
    picture.save(tmp_path / "x.jpg", exif=exif)
    assert runner.read_picture(tmp_path / "x.jpg", "gray").shape == (20, 10)


def test_wrong_folders_are_refused_in_the_users_words(domain: Domain, tmp_path: Path) -> None:
    def refused(folder: Path) -> str:
        with pytest.raises(ToolchainError) as error:
            data.listing(dataclasses.replace(domain, path=str(folder)), tmp_path)
        return str(error.value)

    assert "is not there" in refused(tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    assert "has no class folders" in refused(tmp_path / "empty")
    assert "a single class" in refused(draw(tmp_path / "one", {"ant": 9}))
    assert "too few images" in refused(draw(tmp_path / "few", {"ant": 2, "bee": 9}))
    draw(tmp_path / "hole", {"ant": 9, "bee": 9})
    (tmp_path / "hole" / "cat").mkdir()
    assert "class 'cat' has no images" in refused(tmp_path / "hole")
    draw(tmp_path / "odd" / "train", {"ant": 9, "bee": 9})
    draw(tmp_path / "odd" / "test", {"ant": 9, "wasp": 9})
    assert "different classes; only in one: bee, wasp" in refused(tmp_path / "odd")
    draw(tmp_path / "notrain" / "val", {"ant": 9, "bee": 9})
    assert "no train/" in refused(tmp_path / "notrain")
    assert "disagree on the classes: dog" in refused_with_classes(domain, draw(tmp_path / "cls", {"ant": 9, "bee": 9}))


def refused_with_classes(domain: Domain, folder: Path) -> str:
    with pytest.raises(ToolchainError) as error:
        data.listing(dataclasses.replace(domain, path=str(folder), classes=("ant", "bee", "dog")), folder)
    return str(error.value)


def test_the_calibration_draw_is_fixed_by_count_and_seed(domain: Domain, tmp_path: Path) -> None:
    first, again = load(domain, tmp_path), load(domain, tmp_path)
    other = load(dataclasses.replace(domain, calibration_seed=1), tmp_path)
    assert len(first.calibration) == 16
    assert (first.calibration, first.calibration_digest) == (again.calibration, again.calibration_digest)
    assert first.calibration_digest != other.calibration_digest
