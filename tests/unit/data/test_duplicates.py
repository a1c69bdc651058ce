"""Copies are found whatever was done to them, look-alikes are left alone, and names that tell exposures are understood."""

import dataclasses
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import draw
from PIL import Image, ImageEnhance
from torch import nn
from unit.data.test_checks import found, kinds

from toolchain.config.dataset import Domain
from toolchain.config.recipe import ModelSpec
from toolchain.core.errors import ToolchainError
from toolchain.data.checks import near_duplicates, run_checks, thumbnails
from toolchain.data.checks.finding import DatasetCheck
from toolchain.models import domain_shift
from toolchain.report.pages import data_checks


def scene(seed: int, *, alike: float = 0.0) -> Image.Image:
    """A picture with large and small shapes, in colour; `alike` is the share that all of them have in common."""

    def drawn(random: np.random.Generator) -> np.ndarray:
        layers = [
            np.asarray(Image.fromarray(random.integers(0, 255, (n, n, 3), dtype=np.uint8)).resize((96, 72)), np.float32)
            for n in (3, 8, 24)
        ]
        found: np.ndarray = np.mean(layers, axis=0)
        return found

    own, common = drawn(np.random.default_rng([1, seed])), drawn(np.random.default_rng(0))
    return Image.fromarray((alike * common + (1 - alike) * own).astype(np.uint8))


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


def checked(folder: Path, **changes: str) -> DatasetCheck:
    domain = Domain(name="scenes", path=str(folder), image_size=(64, 64))
    return run_checks.check_dataset(dataclasses.replace(domain, **changes), folder.parent / "cache")  # type: ignore[arg-type]


FIRST = "train/ant/00000.png"  # the picture that is copied


def test_different_pictures_are_no_copies(scenes: Path) -> None:
    checkup = checked(scenes)
    assert checkup.copies == ()
    assert kinds(checkup) == {"test size"}


def test_the_same_pixels_under_two_labels_come_first(scenes: Path) -> None:
    scene(30).save(scenes / "train" / "ant" / "other.bmp")  # also train/bee/00030.png: another file, the same pixels
    scene(1).save(scenes / "test" / "ant" / "again.png")
    scene(2).save(scenes / "train" / "ant" / "again.png")
    checkup = checked(scenes)
    assert found(checkup, "label conflict").files == ("train/ant/other.bmp", "train/bee/00030.png")
    assert found(checkup, "label conflict").severity == "severe"
    assert found(checkup, "leak").files == ("test/ant/again.png", "train/ant/00001.png")
    assert found(checkup, "leak").severity == "severe"
    assert "1 of 61 images in test" in found(checkup, "leak").text
    assert found(checkup, "copies").files == ("train/ant/00002.png", "train/ant/again.png")
    assert [group.has_label_conflict for group in checkup.copies] == [True, False, False]
    assert [group.crosses_splits for group in checkup.copies] == [False, True, False]
    assert all(group.exact for group in checkup.copies)


def test_the_same_pixels_within_a_split_are_a_note(scenes: Path) -> None:
    scene(0).save(scenes / "train" / "ant" / "again.png")
    checkup = checked(scenes)
    assert found(checkup, "copies").files == (FIRST, "train/ant/again.png")
    assert not checkup.has_severe_finding


def saved(
    change: Callable[[Image.Image], Image.Image], suffix: str = "png", quality: int = 90
) -> Callable[[Path], None]:
    return lambda folder: change(scene(0)).save(folder / f"copy.{suffix}", quality=quality)


FLIP = Image.Transpose
CHANGES: dict[str, tuple[Callable[[Path], None], bool]] = {
    "encoded again": (saved(lambda image: image, "jpg", quality=50), False),
    "half as large": (saved(lambda image: image.resize((48, 36))), False),
    "larger": (saved(lambda image: image.resize((240, 180))), False),
    "stretched": (saved(lambda image: image.resize((96, 96))), False),
    "brighter": (saved(lambda image: ImageEnhance.Brightness(image).enhance(1.2)), False),
    "darker": (saved(lambda image: ImageEnhance.Brightness(image).enhance(0.7)), False),
    "gray": (saved(lambda image: image.convert("L")), False),
    "left to right": (saved(lambda image: image.transpose(FLIP.FLIP_LEFT_RIGHT)), True),
    "top to bottom": (saved(lambda image: image.transpose(FLIP.FLIP_TOP_BOTTOM)), True),
    "both": (saved(lambda image: image.transpose(FLIP.ROTATE_180), "jpg", quality=80), True),
}


@pytest.mark.parametrize("change", CHANGES)
def test_changed_copies_are_found_across_splits(scenes: Path, change: str) -> None:
    save, mirrored = CHANGES[change]
    save(scenes / "test" / "ant")
    checkup = checked(scenes)
    finding = found(checkup, "near leak")
    assert len(finding.files) == 2
    assert FIRST in finding.files
    assert finding.severity == "severe"  # one of 61
    assert [(group.exact, group.mirrored) for group in checkup.copies] == [(False, mirrored)]


def test_near_copies_hang_together_as_a_group(scenes: Path) -> None:
    scene(0).save(scenes / "train" / "bee" / "copy.jpg", quality=70)
    scene(0).resize((72, 54)).save(scenes / "train" / "ant" / "small.png")
    (group,) = checked(scenes).copies
    assert {member.file for member in group.members} == {FIRST, "train/bee/copy.jpg", "train/ant/small.png"}
    assert found(checked(scenes), "near label conflict").severity == "warning"


def test_the_same_shape_in_another_colour_is_another_picture(scenes: Path) -> None:
    red, green, blue = scene(0).split()
    gray = scene(0).convert("L")
    pixels = np.stack([np.asarray(part, np.float32) for part in (red, green, blue)], -1)
    turned = np.asarray(gray, np.float32)[..., None] - 1.5 * (pixels - np.asarray(gray, np.float32)[..., None])
    Image.fromarray(turned.clip(0, 255).astype(np.uint8)).save(scenes / "test" / "ant" / "negative.png")
    assert checked(scenes).copies == ()


def test_pictures_that_all_look_alike_are_no_copies(tmp_path: Path) -> None:
    for number in range(120):
        folder = tmp_path / "alike" / ("ant" if number % 2 else "bee")
        folder.mkdir(parents=True, exist_ok=True)
        scene(number, alike=0.8).save(folder / f"{number}.png")
    one, other = (np.asarray(scene(number, alike=0.8).convert("L"), float).ravel() for number in (1, 2))
    assert np.corrcoef(one, other)[0, 1] > 0.9
    assert checked(tmp_path / "alike").copies == ()
    scene(3, alike=0.8).save(tmp_path / "alike" / "ant" / "copy.jpg", quality=80)
    (group,) = checked(tmp_path / "alike").copies
    assert {Path(member.file).name for member in group.members} == {"3.png", "copy.jpg"}


def test_pictures_of_the_same_thing_are_not_yet_the_same(scenes: Path) -> None:
    for number, split in ((0, "train"), (1, "test")):
        base, own = (np.asarray(scene(seed), np.float32) for seed in (500, 600 + number))
        Image.fromarray((0.75 * base + 0.25 * own).astype(np.uint8)).save(scenes / split / "ant" / "thing.png")
    assert checked(scenes).copies == ()


def test_pictures_without_contrast_match_nothing(scenes: Path) -> None:
    for level in (40, 41, 200):
        Image.new("RGB", (96, 72), (level, level, level)).save(scenes / "train" / "ant" / f"flat{level}.png")
    checkup = checked(scenes)
    assert checkup.copies == ()
    assert checkup.searched == 180
    assert "3 images without any contrast" in found(checkup, "searched").text


def test_finer_detail_decides(scenes: Path) -> None:
    fine = np.indices((32, 32)).sum(0) % 2 * 120.0  # vanishes in 16x16
    large = np.asarray(scene(0).convert("L").resize((32, 32)), np.float32) / 2
    for name, detail in (("train/ant/a.png", fine), ("test/ant/b.png", 120 - fine)):
        Image.fromarray((large + detail).clip(0, 255).astype(np.uint8)).save(scenes / name)
    assert not [group for group in checked(scenes).copies if {"train/ant/a.png"} <= {m.file for m in group.members}]


def test_a_large_set_is_searched_in_part_and_says_so(scenes: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(near_duplicates, "MAX_IMAGES", 50)
    checkup = checked(scenes)
    assert checkup.searched == 50
    assert "among 50 of 180 images" in found(checkup, "searched").text


def test_a_set_full_of_copies_ends(scenes: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for number in range(40):
        scene(0).save(scenes / "train" / "ant" / f"copy{number}.jpg", quality=60 + number % 40)
    (group,) = checked(scenes).copies[:1]
    assert len(checked(scenes).copies) == 1
    assert len(group.members) == 41
    monkeypatch.setattr(near_duplicates, "MAX_PAIRS", 10)
    assert "searched" in kinds(checked(scenes))


def grouped(folder: Path, name: str, *, alike: float) -> Path:
    """Twelve exposures of five pictures a class, `alike` among themselves, named by exposure and number."""
    for exposure in range(24):
        own = folder / ("ant" if exposure < 12 else "bee")
        own.mkdir(parents=True, exist_ok=True)
        base = np.asarray(scene(1000 + exposure), np.float32)
        for number in range(5):
            single = np.asarray(scene(2000 + 10 * exposure + number), np.float32)
            pixels = (alike * base + (1 - alike) * single).astype(np.uint8)
            Image.fromarray(pixels).save(own / name.format(exposure=exposure, number=number))
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
    folder = grouped(tmp_path / "grouped", name, alike=0.6)
    checkup = checked(folder)
    assert checkup.copies == ()
    assert checkup.group_pattern == NAMES[name]
    finding = found(checkup, "groups")
    assert finding.severity == "warning"
    assert f"set group_pattern = '{NAMES[name]}'" in finding.text
    kept = checked(folder, group_pattern=NAMES[name])
    assert "each lies within one split" in found(kept, "groups").text


def test_names_without_likeness_are_no_exposures(tmp_path: Path) -> None:
    checkup = checked(grouped(tmp_path / "grouped", "seq{exposure:02d}_{number:04d}.png", alike=0.0))
    assert checkup.group_pattern == ""
    assert "groups" not in kinds(checkup)


def test_running_numbers_are_no_exposures(scenes: Path) -> None:
    for path in scenes.rglob("*.png"):
        path.rename(path.with_name(f"{path.parent.name}_{path.name}"))
    assert "groups" not in kinds(checked(scenes))


def test_exposures_torn_apart_by_given_splits_are_severe(scenes: Path) -> None:
    for split in ("train", "test"):
        for path in (scenes / split / "ant").glob("*.png"):
            path.rename(path.with_name(f"p{int(path.stem) % 10}-{path.name}"))
    finding = found(checked(scenes, group_pattern="^(p[0-9])-"), "groups")
    assert finding.severity == "severe"
    assert "10 of 10 groups" in finding.text
    assert "30 test images" in finding.text
    assert "split the folder again" in finding.text


@pytest.mark.parametrize(("pattern", "said"), [("(", "not a regular expression"), ("p[0-9]", "no group in parentheses")])
def test_a_wrong_pattern_is_told(tmp_path: Path, pattern: str, said: str) -> None:
    folder = draw(tmp_path / "drawn", {"ant": 20, "bee": 20})  # here the pattern would decide the splits
    checkup = checked(folder, group_pattern=pattern, mode="gray")
    assert said in found(checkup, "group pattern").text
    assert "refused" not in kinds(checkup)
    assert checkup.pictures == 40
    fruitless = checked(folder, group_pattern="^(nothing)", mode="gray")
    assert "puts no two files into one group" in found(fruitless, "groups").text


def test_numbers_that_follow_a_recording_are_noted(tmp_path: Path) -> None:
    films = np.stack([np.asarray(scene(number), np.float32) for number in range(130)])
    for number in range(120):
        folder = tmp_path / "film" / ("ant" if number < 60 else "bee")
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(films[number : number + 3].mean(0).astype(np.uint8)).save(folder / f"{number:04d}.png")
    checkup = checked(tmp_path / "film")
    finding = found(checkup, "running numbers")
    assert finding.severity == "note"
    assert "ant (" in finding.text
    assert "bee (" in finding.text


def test_the_sheet_shows_the_worst_side_by_side(scenes: Path) -> None:
    scene(30).save(scenes / "train" / "ant" / "other.png")
    for number in range(40):
        scene(number).save(scenes / "test" / "bee" / f"copy{number}.jpg", quality=80)
    page = data_checks.render_html(checked(scenes), None)
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


# --- distance ------------------------------------------------------------------------------------------------


def test_features_that_agree_are_near_and_others_far() -> None:
    random = torch.Generator().manual_seed(0)
    one, same, other = (torch.randn(120, 16, generator=random) for _ in range(3))
    assert domain_shift.proxy_a_distance(one, same) < 0.5
    assert domain_shift.proxy_a_distance(one, other + 3) > 1.9
    assert domain_shift.CalibratedDistance(value=0.1, lowest=0.0, highest=2.0).verdict == "near"
    assert domain_shift.CalibratedDistance(value=1.9, lowest=0.0, highest=2.0).verdict == "far"


def test_statistics_are_measured_in_the_sources_own_deviations() -> None:
    norm = nn.BatchNorm2d(2)
    assert norm.running_mean is not None
    assert norm.running_var is not None
    norm.running_mean.copy_(torch.tensor([1.0, 0.0]))
    norm.running_var.copy_(torch.tensor([4.0, 0.0]))  # the second channel was never used
    x = torch.randn(64, 2, 9, 9, generator=torch.Generator().manual_seed(0)) * 2 + 5
    sums: dict[str, list[torch.Tensor]] = {}
    for part in (x[:20], x[20:]):
        domain_shift._add(sums, "norm", norm, (part,))
    found = domain_shift._layer("norm", norm, sums["norm"])
    assert found is not None
    assert found.mean == pytest.approx(2.0, abs=0.1)  # (5 - 1) / 2
    assert found.spread == pytest.approx(0.0, abs=0.1)


def test_a_distance_comes_with_its_yardsticks(tmp_path: Path) -> None:
    spec = ModelSpec(name="squeezenet1_1", weights="zoo:squeezenet1_1_glyphs", mean=(0.5,) * 3, std=(0.5,) * 3)
    domains = [
        Domain(name=name, path=str(draw(tmp_path / name, counts, seed=seed)), mode="gray", image_size=(32, 32))
        for seed, (name, counts) in enumerate([("here", {"ant": 40, "bee": 40}), ("there", {"cat": 60, "ant": 40})])
    ]
    measured = domain_shift.measure(domains[0], spec, (32, 32), tmp_path, domains[1])
    assert measured.statistics is None  # a SqueezeNet has no batch norm
    assert measured.features is not None
    assert measured.features.lowest <= measured.features.value <= 2
    assert "proxy A-distance" in measured.text
    checkup = run_checks.check_dataset(domains[0], tmp_path)
    assert "Distance from the data that the model knows" in data_checks.render_html(checkup, measured)
    with pytest.raises(ToolchainError, match="no pretrained weights"):
        domain_shift.measure(domains[0], dataclasses.replace(spec, weights=""), (32, 32), tmp_path, None)


def test_batch_norm_tells_the_distance_without_a_source(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    from toolchain.models import build

    model = build.build_untrained(ModelSpec(name="resnet18"), 2)
    save_file(model.state_dict(), tmp_path / "weights.safetensors")
    folder = draw(tmp_path / "here", {"ant": 30, "bee": 30})
    domain = Domain(name="here", path=str(folder), mode="gray", image_size=(32, 32))
    spec = ModelSpec(name="resnet18", weights=str(tmp_path / "weights.safetensors"))
    measured = domain_shift.measure(domain, spec, (32, 32), tmp_path, None)
    assert measured.features is None
    assert measured.statistics is not None
    assert len(measured.layers) == 20
    assert measured.statistics.value == pytest.approx(np.mean([layer.mean for layer in measured.layers]))
    assert "running means" in measured.text


def test_a_set_of_flat_pictures_is_examined_all_the_same(tmp_path: Path) -> None:
    for number in range(24):
        path = tmp_path / "set" / ("ant" if number % 2 else "bee") / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("L", (12, 12), 5 * number).save(path)
    assert "searched" in {finding.kind for finding in checked(tmp_path / "set").findings}
