"""Duplicates are detected after common changes, similar images are not reported, and file names give exposure groups."""

import dataclasses
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from conftest import draw
from PIL import Image, ImageEnhance
from unit.data.test_checks import finding_kinds, finding_of

from toolchain.config.dataset import Domain
from toolchain.data.checks import near_duplicates, run_checks, thumbnails
from toolchain.data.checks.finding import DatasetCheck
from toolchain.report.pages import data_checks


def scene(seed: int, *, alike: float = 0.0) -> Image.Image:
    """Draw an image with large and small shapes, in colour; `alike` is the share that all images have in common."""

    def draw_shapes(random: np.random.Generator) -> np.ndarray:
        layers = [
            np.asarray(Image.fromarray(random.integers(0, 255, (n, n, 3), dtype=np.uint8)).resize((96, 72)), np.float32)
            for n in (3, 8, 24)
        ]
        mean: np.ndarray = np.mean(layers, axis=0)
        return mean

    single, common = draw_shapes(np.random.default_rng([1, seed])), draw_shapes(np.random.default_rng(0))
    return Image.fromarray((alike * common + (1 - alike) * single).astype(np.uint8))


@pytest.fixture
def scenes(tmp_path: Path) -> Path:
    """Three splits of two classes, thirty different scenes in each class and split."""
    seed = 0
    for split in ("train", "val", "test"):
        for label in ("ant", "bee"):
            (tmp_path / "scenes" / split / label).mkdir(parents=True)
            for _ in range(30):
                scene(seed).save(tmp_path / "scenes" / split / label / f"{seed:05d}.png")
                seed += 1
    return tmp_path / "scenes"


def check(folder: Path, **changes: str) -> DatasetCheck:
    domain = Domain(name="scenes", path=str(folder), image_size=(64, 64))
    return run_checks.check_dataset(dataclasses.replace(domain, **changes), folder.parent / "cache")  # type: ignore[arg-type]


FIRST = "train/ant/00000.png"  # the image that is copied


def test_different_images_are_no_duplicates(scenes: Path) -> None:
    result = check(scenes)
    assert result.copies == ()
    assert finding_kinds(result) == {"test size"}


def test_the_same_pixels_under_two_labels_come_first(scenes: Path) -> None:
    scene(30).save(scenes / "train" / "ant" / "other.bmp")  # also train/bee/00030.png: another file, the same pixels
    scene(1).save(scenes / "test" / "ant" / "again.png")
    scene(2).save(scenes / "train" / "ant" / "again.png")
    result = check(scenes)
    assert finding_of(result, "label conflict").files == ("train/ant/other.bmp", "train/bee/00030.png")
    assert finding_of(result, "label conflict").severity == "severe"
    assert finding_of(result, "leak").files == ("test/ant/again.png", "train/ant/00001.png")
    assert finding_of(result, "leak").severity == "severe"
    assert "1 of 61 images in test" in finding_of(result, "leak").text
    assert finding_of(result, "copies").files == ("train/ant/00002.png", "train/ant/again.png")
    assert [group.has_label_conflict for group in result.copies] == [True, False, False]
    assert [group.crosses_splits for group in result.copies] == [False, True, False]
    assert all(group.exact for group in result.copies)


def test_the_same_pixels_within_a_split_are_a_note(scenes: Path) -> None:
    scene(0).save(scenes / "train" / "ant" / "again.png")
    result = check(scenes)
    assert finding_of(result, "copies").files == (FIRST, "train/ant/again.png")
    assert not result.has_severe_finding


def save(
    change: Callable[[Image.Image], Image.Image], suffix: str = "png", quality: int = 90
) -> Callable[[Path], None]:
    return lambda folder: change(scene(0)).save(folder / f"copy.{suffix}", quality=quality)


FLIP = Image.Transpose
CHANGES: dict[str, tuple[Callable[[Path], None], bool]] = {
    "encoded again": (save(lambda image: image, "jpg", quality=50), False),
    "half as large": (save(lambda image: image.resize((48, 36))), False),
    "larger": (save(lambda image: image.resize((240, 180))), False),
    "stretched": (save(lambda image: image.resize((96, 96))), False),
    "brighter": (save(lambda image: ImageEnhance.Brightness(image).enhance(1.2)), False),
    "darker": (save(lambda image: ImageEnhance.Brightness(image).enhance(0.7)), False),
    "gray": (save(lambda image: image.convert("L")), False),
    "left to right": (save(lambda image: image.transpose(FLIP.FLIP_LEFT_RIGHT)), True),
    "top to bottom": (save(lambda image: image.transpose(FLIP.FLIP_TOP_BOTTOM)), True),
    "both": (save(lambda image: image.transpose(FLIP.ROTATE_180), "jpg", quality=80), True),
}


@pytest.mark.parametrize("change", CHANGES)
def test_near_duplicates_are_found_across_splits(scenes: Path, change: str) -> None:
    save_copy, mirrored = CHANGES[change]
    save_copy(scenes / "test" / "ant")
    result = check(scenes)
    finding = finding_of(result, "near leak")
    assert len(finding.files) == 2
    assert FIRST in finding.files
    assert finding.severity == "severe"  # one of 61
    assert [(group.exact, group.mirrored) for group in result.copies] == [(False, mirrored)]


def test_near_duplicates_form_one_group(scenes: Path) -> None:
    scene(0).save(scenes / "train" / "bee" / "copy.jpg", quality=70)
    scene(0).resize((72, 54)).save(scenes / "train" / "ant" / "small.png")
    (group,) = check(scenes).copies
    assert {member.file for member in group.members} == {FIRST, "train/bee/copy.jpg", "train/ant/small.png"}
    assert finding_of(check(scenes), "near label conflict").severity == "warning"


def test_the_same_shapes_in_other_colours_are_no_duplicate(scenes: Path) -> None:
    red, green, blue = scene(0).split()
    gray = scene(0).convert("L")
    pixels = np.stack([np.asarray(part, np.float32) for part in (red, green, blue)], -1)
    turned = np.asarray(gray, np.float32)[..., None] - 1.5 * (pixels - np.asarray(gray, np.float32)[..., None])
    Image.fromarray(turned.clip(0, 255).astype(np.uint8)).save(scenes / "test" / "ant" / "negative.png")
    assert check(scenes).copies == ()


def test_images_that_all_look_alike_are_no_duplicates(tmp_path: Path) -> None:
    for number in range(120):
        folder = tmp_path / "alike" / ("ant" if number % 2 else "bee")
        folder.mkdir(parents=True, exist_ok=True)
        scene(number, alike=0.8).save(folder / f"{number}.png")
    one, other = (np.asarray(scene(number, alike=0.8).convert("L"), float).ravel() for number in (1, 2))
    assert np.corrcoef(one, other)[0, 1] > 0.9
    assert check(tmp_path / "alike").copies == ()
    scene(3, alike=0.8).save(tmp_path / "alike" / "ant" / "copy.jpg", quality=80)
    (group,) = check(tmp_path / "alike").copies
    assert {Path(member.file).name for member in group.members} == {"3.png", "copy.jpg"}


def test_images_of_the_same_object_are_no_duplicates(scenes: Path) -> None:
    for number, split in ((0, "train"), (1, "test")):
        base, own = (np.asarray(scene(seed), np.float32) for seed in (500, 600 + number))
        Image.fromarray((0.75 * base + 0.25 * own).astype(np.uint8)).save(scenes / split / "ant" / "thing.png")
    assert check(scenes).copies == ()


def test_images_without_contrast_match_nothing(scenes: Path) -> None:
    for level in (40, 41, 200):
        Image.new("RGB", (96, 72), (level, level, level)).save(scenes / "train" / "ant" / f"flat{level}.png")
    result = check(scenes)
    assert result.copies == ()
    assert result.searched == 180
    assert "3 images without any contrast" in finding_of(result, "searched").text


def test_fine_details_must_agree(scenes: Path) -> None:
    fine = np.indices((32, 32)).sum(0) % 2 * 120.0  # vanishes in 16x16
    large = np.asarray(scene(0).convert("L").resize((32, 32)), np.float32) / 2
    for name, detail in (("train/ant/a.png", fine), ("test/ant/b.png", 120 - fine)):
        Image.fromarray((large + detail).clip(0, 255).astype(np.uint8)).save(scenes / name)
    assert not [group for group in check(scenes).copies if {"train/ant/a.png"} <= {m.file for m in group.members}]


def test_of_a_large_dataset_a_sample_is_searched_and_reported(scenes: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(near_duplicates, "MAX_IMAGES", 50)
    result = check(scenes)
    assert result.searched == 50
    assert "among 50 of 180 images" in finding_of(result, "searched").text


def test_the_search_ends_in_a_dataset_full_of_duplicates(scenes: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for number in range(40):
        scene(0).save(scenes / "train" / "ant" / f"copy{number}.jpg", quality=60 + number % 40)
    (group,) = check(scenes).copies[:1]
    assert len(check(scenes).copies) == 1
    assert len(group.members) == 41
    monkeypatch.setattr(near_duplicates, "MAX_PAIRS", 10)
    assert "searched" in finding_kinds(check(scenes))


def write_exposures(folder: Path, name: str, *, alike: float) -> Path:
    """Write twelve exposures of five images per class; `alike` is the share that the images of an exposure have in common."""
    for exposure in range(24):
        class_folder = folder / ("ant" if exposure < 12 else "bee")
        class_folder.mkdir(parents=True, exist_ok=True)
        base = np.asarray(scene(1000 + exposure), np.float32)
        for number in range(5):
            single = np.asarray(scene(2000 + 10 * exposure + number), np.float32)
            pixels = (alike * base + (1 - alike) * single).astype(np.uint8)
            Image.fromarray(pixels).save(class_folder / name.format(exposure=exposure, number=number))
    return folder


NAMES = {
    "seq{exposure:02d}_{number:04d}.png": r"^([^_ -]+)[_ -]",
    "patient{exposure}-left-{number}.png": r"^([^_ -]+)[_ -]",
    "IMG_{exposure} ({number}).png": r"^(.+?)(?: ?\(\d+\))?\.[^.]+$",
    "IMG_{exposure:03d}_{number}.png": r"^([^_ -]+[_ -]+[^_ -]+)[_ -]",
    "seq{exposure}frame{number}.png": r"^([A-Za-z]+\d+)[A-Za-z]+\d+",
    "x{exposure}_jpg.rf.{number}a.png": r"^(.+)\.rf\.",
}


@pytest.mark.parametrize("name", NAMES)
def test_exposures_are_read_from_file_names(tmp_path: Path, name: str) -> None:
    folder = write_exposures(tmp_path / "grouped", name, alike=0.6)
    result = check(folder)
    assert result.copies == ()
    assert result.group_pattern == NAMES[name]
    finding = finding_of(result, "groups")
    assert finding.severity == "warning"
    assert f"set group_pattern = '{NAMES[name]}'" in finding.text
    kept = check(folder, group_pattern=NAMES[name])
    assert "each lies within one split" in finding_of(kept, "groups").text


def test_names_of_images_that_do_not_look_alike_are_no_exposures(tmp_path: Path) -> None:
    result = check(write_exposures(tmp_path / "grouped", "seq{exposure:02d}_{number:04d}.png", alike=0.0))
    assert result.group_pattern == ""
    assert "groups" not in finding_kinds(result)


def test_running_numbers_are_no_exposures(scenes: Path) -> None:
    for path in scenes.rglob("*.png"):
        path.rename(path.with_name(f"{path.parent.name}_{path.name}"))
    assert "groups" not in finding_kinds(check(scenes))


def test_exposures_divided_by_the_folders_splits_are_severe(scenes: Path) -> None:
    for split in ("train", "test"):
        for path in (scenes / split / "ant").glob("*.png"):
            path.rename(path.with_name(f"p{int(path.stem) % 10}-{path.name}"))
    finding = finding_of(check(scenes, group_pattern="^(p[0-9])-"), "groups")
    assert finding.severity == "severe"
    assert "10 of 10 groups" in finding.text
    assert "30 test images" in finding.text
    assert "split the folder again" in finding.text


@pytest.mark.parametrize(
    ("pattern", "problem"), [("(", "not a regular expression"), ("p[0-9]", "no group in parentheses")]
)
def test_a_wrong_pattern_is_reported(tmp_path: Path, pattern: str, problem: str) -> None:
    folder = draw(tmp_path / "drawn", {"ant": 20, "bee": 20})  # here the pattern would decide the splits
    result = check(folder, group_pattern=pattern, mode="gray")
    assert problem in finding_of(result, "group pattern").text
    assert "refused" not in finding_kinds(result)
    assert result.pictures == 40
    unmatched = check(folder, group_pattern="^(nothing)", mode="gray")
    assert "puts no two files into one group" in finding_of(unmatched, "groups").text


def test_numbers_that_follow_a_recording_are_noted(tmp_path: Path) -> None:
    films = np.stack([np.asarray(scene(number), np.float32) for number in range(130)])
    for number in range(120):
        folder = tmp_path / "film" / ("ant" if number < 60 else "bee")
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(films[number : number + 3].mean(0).astype(np.uint8)).save(folder / f"{number:04d}.png")
    result = check(tmp_path / "film")
    finding = finding_of(result, "running numbers")
    assert finding.severity == "note"
    assert "ant (" in finding.text
    assert "bee (" in finding.text


def test_the_page_shows_the_most_severe_duplicates_side_by_side(scenes: Path) -> None:
    scene(30).save(scenes / "train" / "ant" / "other.png")
    for number in range(40):
        scene(number).save(scenes / "test" / "bee" / f"copy{number}.jpg", quality=80)
    page = data_checks.render_html(check(scenes), None)
    assert 58 <= page.count("data:image/") <= 60
    assert page.index("Same pixels, different labels") < page.index("Near-duplicates, different labels")
    assert "further groups of duplicates" in page


def test_thumbnails_are_taken_from_what_the_runner_sees() -> None:
    gray, tint = thumbnails.make_thumbnails(np.asarray(scene(0)))
    assert gray.shape == (32, 32)
    assert tint is not None
    assert tint.shape == (8, 8, 3)
    assert abs(float(tint.astype(np.float32).sum(2).mean())) < 0.1
    assert thumbnails.make_thumbnails(np.asarray(scene(0).convert("L")))[1] is None


def test_a_dataset_without_contrast_can_be_checked(tmp_path: Path) -> None:
    for number in range(24):
        path = tmp_path / "set" / ("ant" if number % 2 else "bee") / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("L", (12, 12), 5 * number).save(path)
    assert "searched" in {finding.kind for finding in check(tmp_path / "set").findings}
