"""Folders become datasets with the right splits and pixels; errors name the file or the class."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import draw
from PIL import Image

from toolchain.config.dataset import Domain
from toolchain.config.recipe import AugmentSpec
from toolchain.core.errors import ToolchainError
from toolchain.core.types import Preprocessing
from toolchain.data import dataset_files, decoded_dataset, loader, splits
from toolchain.edge import run

PREPROCESS = Preprocessing(image_size=(32, 32), mode="gray", mean=(0.5, 0.4, 0.3), std=(0.2, 0.3, 0.5))


def load(domain: Domain, tmp_path: Path, preprocess: Preprocessing = PREPROCESS) -> decoded_dataset.Dataset:
    return decoded_dataset.load(domain, preprocess, tmp_path / "cache")


def test_a_folder_is_split_the_same_way_every_time_and_by_class(domain: Domain, tmp_path: Path) -> None:
    first, again = load(domain, tmp_path), decoded_dataset.load(domain, PREPROCESS, tmp_path / "elsewhere")
    assert first.digest == again.digest
    assert {name: len(part) for name, part in first.splits.items()} == {"train": 81, "val": 15, "test": 24}
    assert torch.bincount(first.splits["test"].labels).tolist() == [8, 8, 8]
    files = [set(part.files) for part in first.splits.values()]
    assert not files[0] & files[1] | files[1] & files[2] | files[0] & files[2]
    assert first.splits["test"].files == again.splits["test"].files


def test_given_splits_are_kept_and_validation_comes_from_training(tmp_path: Path) -> None:
    draw(tmp_path / "set" / "train", {"ant": 20, "bee": 20})
    draw(tmp_path / "set" / "test", {"ant": 4, "bee": 6}, seed=1)
    dataset = load(Domain(name="x", path=str(tmp_path / "set"), mode="gray"), tmp_path)
    assert [len(dataset.splits[split]) for split in splits.SPLITS] == [34, 6, 10]


def test_training_and_serving_see_the_same_pixels(domain: Domain, tmp_path: Path) -> None:
    test = load(domain, tmp_path).splits["test"]
    trained, _ = next(loader.ordered_batches(test, PREPROCESS, 5))
    manifest = dataclasses.asdict(PREPROCESS)
    served = np.concatenate([run.prepare(file, manifest) for file in test.files[:5]])
    assert np.array_equal(trained.numpy(), served)


def test_the_cache_is_used_and_follows_the_content(
    domain: Domain, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = load(domain, tmp_path)
    monkeypatch.setattr(run, "read_image", lambda *_: pytest.fail("decoded again"))
    assert load(domain, tmp_path).digest == first.digest
    monkeypatch.undo()
    Image.fromarray(np.zeros((12, 10), np.uint8)).save(first.splits["train"].files[0])
    assert load(domain, tmp_path).digest != first.digest


def test_another_decoder_decodes_anew(domain: Domain, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = load(domain, tmp_path)
    assert any("def read_image" in part for part in decoded_dataset.DECODER_VERSION)
    monkeypatch.setattr(decoded_dataset, "DECODER_VERSION", ("another way to read pictures",))
    assert load(domain, tmp_path).digest != first.digest


def epoch(dataset: decoded_dataset.Dataset, seed: int, workers: int) -> torch.Tensor:
    spec = AugmentSpec(horizontal_flip=True, crop=0.3, rotate_degrees=5.0, brightness=0.1, erase=0.5, mixup=0.3)
    batches = loader.training_batches(dataset, 16, seed=seed, augment=spec, workers=workers)
    return torch.cat([torch.cat([batch.images.flatten(1), batch.soft_labels], 1) for batch in batches])


def test_batches_depend_on_the_seed_and_not_on_the_workers(domain: Domain, tmp_path: Path) -> None:
    dataset = load(domain, tmp_path)
    first = epoch(dataset, 3, 0)
    assert first.isfinite().all()
    assert torch.equal(first, epoch(dataset, 3, 1))
    assert torch.equal(first, epoch(dataset, 3, 4))
    assert not torch.equal(first, epoch(dataset, 4, 0))


def test_an_epoch_without_augmentation_has_every_image_once_and_unchanged(domain: Domain, tmp_path: Path) -> None:
    dataset = load(domain, tmp_path)
    batches = list(loader.training_batches(dataset, 20, seed=0, augment=AugmentSpec()))
    assert [len(batch.images) for batch in batches] == [20] * 4  # of 81: batch norm cannot train on a single image
    plain = loader.normalise(dataset.splits["train"].pixels, PREPROCESS)
    shown = torch.cat([batch.images for batch in batches])
    origin = [int((plain == image).flatten(1).all(1).nonzero()) for image in shown]  # fails unless there is exactly one
    assert len(set(origin)) == 80
    labels = torch.cat([batch.soft_labels for batch in batches]).argmax(1)
    assert torch.equal(labels, dataset.splits["train"].labels[origin])


def test_an_error_in_a_thread_reaches_the_training_loop(domain: Domain, tmp_path: Path) -> None:
    dataset = load(domain, tmp_path)
    few = dataclasses.replace(dataset, classes=("ant",))  # one class fewer than the labels name
    with pytest.raises(RuntimeError, match="num_classes"):
        list(loader.training_batches(few, 16, seed=0, augment=AugmentSpec(), workers=2))


def corrupt(folder: Path, how: str) -> Path:
    path = folder / "bee" / "000.png"
    body = path.read_bytes()
    path.write_bytes({"truncated": body[: len(body) // 2], "empty": b"", "text": b"not a picture"}[how])
    return path


@pytest.mark.parametrize("how", ["truncated", "empty", "text"])
def test_a_corrupt_image_is_named(domain: Domain, pictures: Path, tmp_path: Path, how: str) -> None:
    path = corrupt(pictures, how)
    with pytest.raises(ToolchainError, match=f"{path.name} is not a readable picture.*on_corrupt"):
        load(domain, tmp_path)


def test_corrupt_images_can_be_skipped_and_are_reported(domain: Domain, pictures: Path, tmp_path: Path) -> None:
    path = corrupt(pictures, "truncated")
    dataset = load(dataclasses.replace(domain, on_corrupt="skip"), tmp_path)
    assert dataset.skipped_files == (str(path),)
    assert sum(len(part) for part in dataset.splits.values()) == 119


@pytest.mark.parametrize("mode", ["I;16", "RGBA", "CMYK", "P", "1", "LA"])
def test_unusual_images_become_eight_bit(tmp_path: Path, mode: str) -> None:
    if mode == "I;16":
        Image.fromarray(np.full((9, 7), 128 << 8, np.uint16)).save(tmp_path / "x.png")
    else:
        Image.new("L", (7, 9), 128).convert(mode).save(tmp_path / ("x.tif" if mode == "CMYK" else "x.png"))
    pixels = run.read_image(next(tmp_path.glob("x.*")), "gray")
    assert pixels.shape == (9, 7)
    assert pixels.dtype == np.uint8
    assert mode == "1" or abs(int(pixels.mean()) - 128) <= 1


def test_exif_rotation_is_applied(tmp_path: Path) -> None:
    picture = Image.new("L", (20, 10))
    exif = picture.getexif()
    exif[0x0112] = 6
    picture.save(tmp_path / "x.jpg", exif=exif)
    assert run.read_image(tmp_path / "x.jpg", "gray").shape == (20, 10)


def test_wrong_folders_are_rejected_with_their_problem(domain: Domain, tmp_path: Path) -> None:
    def message_of(folder: Path) -> str:
        with pytest.raises(ToolchainError) as error:
            dataset_files.find_images(dataclasses.replace(domain, path=str(folder)), tmp_path)
        return str(error.value)

    assert "does not exist" in message_of(tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    assert "has no class folders" in message_of(tmp_path / "empty")
    assert "a single class" in message_of(draw(tmp_path / "one", {"ant": 9}))
    assert "too few images" in message_of(draw(tmp_path / "few", {"ant": 2, "bee": 9}))
    draw(tmp_path / "hole", {"ant": 9, "bee": 9})
    (tmp_path / "hole" / "cat").mkdir()
    assert "class 'cat' has no images" in message_of(tmp_path / "hole")
    draw(tmp_path / "odd" / "train", {"ant": 9, "bee": 9})
    draw(tmp_path / "odd" / "test", {"ant": 9, "wasp": 9})
    assert "different classes; only in one of them: bee, wasp" in message_of(tmp_path / "odd")
    draw(tmp_path / "notrain" / "val", {"ant": 9, "bee": 9})
    assert "no train/" in message_of(tmp_path / "notrain")
    assert "only in one of them: dog" in message_with_classes(domain, draw(tmp_path / "cls", {"ant": 9, "bee": 9}))


def message_with_classes(domain: Domain, folder: Path) -> str:
    with pytest.raises(ToolchainError) as error:
        dataset_files.find_images(dataclasses.replace(domain, path=str(folder), classes=("ant", "bee", "dog")), folder)
    return str(error.value)


def test_the_calibration_sample_is_fixed_by_count_and_seed(domain: Domain, tmp_path: Path) -> None:
    first, again = load(domain, tmp_path), load(domain, tmp_path)
    other = load(dataclasses.replace(domain, calibration_seed=1), tmp_path)
    assert len(first.calibration_rows) == 16
    assert (first.calibration_rows, first.calibration_digest) == (again.calibration_rows, again.calibration_digest)
    assert first.calibration_digest != other.calibration_digest


def test_identical_images_and_exposure_groups_stay_in_one_split(tmp_path: Path) -> None:
    folder = draw(tmp_path / "set", {"ant": 30, "bee": 30})
    for number in range(6):  # six copies of one image, two of them in the other class
        other = folder / ("bee" if number > 3 else "ant") / f"copy{number}.png"
        other.write_bytes((folder / "ant" / "000.png").read_bytes())
    for number in range(6, 18):
        (folder / "ant" / f"{number:03d}.png").rename(folder / "ant" / f"scene{number // 6}_{number}.png")
    dataset = dataset_files.find_images(Domain(name="x", path=str(folder), group_pattern=r"^(scene\d+)_"), tmp_path)
    side = {path.name: split for split in splits.SPLITS for path in dataset.files[split]}
    copies = {split for split in splits.SPLITS for path in dataset.files[split] if path.name.startswith("copy")}
    assert len(copies) == 1
    for scene in ("scene1", "scene2"):
        assert len({split for name, split in side.items() if name.startswith(scene)}) == 1


def test_without_groups_the_split_is_that_of_single_files(pictures: Path, tmp_path: Path) -> None:
    plain = dataset_files.find_images(Domain(name="x", path=str(pictures)), tmp_path)
    alone = dataset_files.find_images(Domain(name="x", path=str(pictures), group_pattern=r"(\d+)\.png$.^"), tmp_path)
    assert plain.digest == alone.digest


def test_a_class_whose_only_image_leaves_none_to_train_on_is_named(tmp_path: Path) -> None:
    folder = draw(tmp_path / "set", {"ant": 1, "bee": 1})
    with pytest.raises(ToolchainError, match="too few images in .*: the train split would have none of ant, bee"):
        dataset_files.find_images(Domain(name="x", path=str(folder)), tmp_path)
    whole = draw(tmp_path / "whole", {"ant": 9, "bee": 9})
    for path in [*whole.glob("*/*.png")]:
        path.rename(path.with_name(f"{path.parent.name}_{path.name}"))
    with pytest.raises(ToolchainError, match="too few images.*group_pattern = .* keeps groups whole"):
        dataset_files.find_images(Domain(name="x", path=str(whole), group_pattern="^([a-z]+)_"), tmp_path)


@pytest.mark.parametrize("seed", range(5))
def test_a_rare_class_among_groups_of_others_reaches_every_split(tmp_path: Path, seed: int) -> None:
    folder = draw(tmp_path / "set", {"ant": 60, "zebra": 6})
    for name in ("ant", "zebra"):
        for number, path in enumerate(sorted((folder / name).glob("*.png"))):
            path.rename(path.with_name(f"s{number}_{name}.png"))  # six scenes show both
    dataset = dataset_files.find_images(
        Domain(name="x", path=str(folder), group_pattern="^(s[0-9]+)_", split_seed=seed), tmp_path
    )
    for split in splits.SPLITS:
        assert set(dataset.labels[split]) == {0, 1}


def test_the_weight_of_an_image_is_blended_with_its_label(domain: Domain, tmp_path: Path) -> None:
    dataset = load(domain, tmp_path)
    light = dataclasses.replace(
        dataset.splits["train"], loss_weights=torch.where(dataset.splits["train"].labels == 0, 0.1, 1.0)
    )
    dataset = dataclasses.replace(dataset, splits={**dataset.splits, "train": light})
    for batch in loader.training_batches(dataset, 16, seed=0, augment=AugmentSpec(mixup=1.0)):
        assert torch.allclose(batch.soft_labels.sum(1), torch.ones(len(batch.soft_labels)))
        share = batch.soft_labels[:, 0]  # of the light class, in the blended weight
        assert torch.allclose(batch.loss_weights[share == 0], torch.ones(1))
        assert (batch.loss_weights[share > 0.01] < 1).all()


def in_fixed_point(pixels: np.ndarray, height: int, width: int) -> np.ndarray:
    """Bilinear with antialiasing as Pillow has rounded it for ten years: width first, 22 bits after the point."""

    def along(rows: np.ndarray, to: int) -> np.ndarray:
        scale = rows.shape[-1] / to
        reach, columns = max(scale, 1.0), []
        for column in range(to):
            centre = (column + 0.5) * scale
            first, last = max(int(centre - reach + 0.5), 0), min(int(centre + reach + 0.5), rows.shape[-1])
            taps = [max(0.0, 1 - abs((x - centre + 0.5) * (1 / reach))) for x in range(first, last)]
            weights = [int(0.5 + tap / sum(taps) * (1 << 22)) for tap in taps]
            columns.append(((rows[..., first:last] * weights).sum(-1) + (1 << 21) >> 22).clip(0, 255))
        return np.stack(columns, -1)

    resized = pixels.astype(np.int64)
    resized = along(resized, width) if width != resized.shape[1] else resized
    return along(resized.T, height).T if height != resized.shape[0] else resized


@pytest.mark.parametrize("shape", [(37, 19), (100, 20), (64, 32), (33, 33), (117, 203), (20, 100), (32, 19), (32, 32)])
def test_pixels_do_not_depend_on_the_order_that_this_pillow_prefers(shape: tuple[int, int]) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    for size in ((32, 32), (32, 200)):
        assert np.array_equal(run.fit_size(pixels, size), in_fixed_point(pixels, *size))
