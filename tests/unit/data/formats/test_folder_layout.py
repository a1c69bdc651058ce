"""Folders as people have them: system files, names of splits, an outer folder, Unicode forms, formats, wrong folders."""

import dataclasses
import shutil
import subprocess
import sys
import unicodedata
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import ROOT, draw
from PIL import Image, features

from toolchain.config.dataset import Domain
from toolchain.core.errors import ToolchainError
from toolchain.data import dataset_files, dataset_format
from toolchain.data.checks import run_checks
from toolchain.data.checks.finding import DatasetCheck
from toolchain.data.formats.folders import image_formats
from toolchain.data.formats.folders.folder_layout import FolderLayout, read_layout

NFC, NFD = unicodedata.normalize("NFC", "é"), unicodedata.normalize("NFD", "é")
COUNTS = {"ant": 9, "bee": 9}


def domain_of(folder: Path, classes: tuple[str, ...] = ()) -> Domain:
    return Domain(name="x", path=str(folder), mode="gray", image_size=(32, 32), classes=classes)


def error_of(folder: Path, classes: tuple[str, ...] = ()) -> str:
    """Return the message that export gives before it starts; listing the images must give the same."""
    with pytest.raises(ToolchainError) as error:
        dataset_format.check(domain_of(folder, classes), folder)
    with pytest.raises(ToolchainError) as later:
        dataset_files.find_images(domain_of(folder, classes), folder)
    assert str(later.value) == str(error.value)
    return str(error.value)


def check(folder: Path, tmp_path: Path) -> DatasetCheck:
    return run_checks.check_dataset(domain_of(folder), tmp_path / "cache")


def texts_of(result: DatasetCheck, kind: str) -> list[str]:
    return [finding.text for finding in result.findings if finding.kind == kind]


def split_names(layout: FolderLayout) -> dict[str, str]:
    return {split: folder.name for split, folder in layout.split_folders.items()}


def litter(folder: Path) -> int:
    """Leave what systems and programs leave; return the number of files."""
    image = (folder / "ant" / "000.png").read_bytes()
    left = [
        "__MACOSX/ant/._000.png", "ant/._000.png", ".DS_Store", "ant/.DS_Store", "ant/Thumbs.db", "bee/desktop.ini",
        "ant/.ipynb_checkpoints/000-checkpoint.png", ".hidden/000.png", "ant/.hidden.png", "bee/@eaDir/000.png",
    ]  # fmt: skip
    for name in left:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(image)
    return len(left)


def test_system_files_are_never_classes_or_images_and_change_nothing(tmp_path: Path) -> None:
    folder = draw(tmp_path / "set", COUNTS)
    before = dataset_files.find_images(domain_of(folder), tmp_path)
    count = litter(folder)
    after = dataset_files.find_images(domain_of(folder), tmp_path)
    assert after == before  # the same files, labels, splits and digest
    layout = read_layout(folder)
    assert len(layout.system_files) == count
    assert layout.notes == (f"{count} system files ignored (.DS_Store, ._*, .hidden, ...)",)
    result = check(folder, tmp_path)
    assert (result.pictures, result.ignored) == (18, 0)
    assert texts_of(result, "system files") == [f"{layout.notes[0]}."]
    assert not texts_of(result, "refused")


def test_an_archive_made_on_a_mac_and_a_notebook_copy_are_named(tmp_path: Path) -> None:
    folder = draw(tmp_path / "set", COUNTS)
    for name in ("__MACOSX/ant/._000.png", "__MACOSX/ant/._001.png", "ant/.ipynb_checkpoints/000-checkpoint.png"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(folder / "ant" / "000.png", folder / name)
    assert read_layout(folder).notes == ("3 system files ignored (__MACOSX, .ipynb_checkpoints)",)
    result = check(folder, tmp_path)
    assert [count.label for count in result.classes] == ["ant", "bee"]
    assert result.copies == ()


@pytest.mark.parametrize(
    "names",
    [
        ("train", "valid", "test"),
        ("Train", "Validation", "Test"),
        ("training", "dev", "testing"),
        ("TRAIN", "VAL", "TESTING"),
    ],
)
def test_the_names_that_people_give_to_splits(tmp_path: Path, names: tuple[str, str, str]) -> None:
    for name in names:
        draw(tmp_path / "set" / name, COUNTS, seed=len(name))
    layout = read_layout(tmp_path / "set")
    assert split_names(layout) == dict(zip(("train", "val", "test"), names, strict=True))
    dataset = dataset_files.find_images(domain_of(tmp_path / "set"), tmp_path)
    assert dataset.classes == ("ant", "bee")
    assert {path.parts[-3] for path in dataset.files["val"]} == {names[1]}
    assert {path.parts[-3] for path in dataset.files["test"]} == {names[2]}
    assert f"{names[1]}/ is read as the validation split" in layout.notes[0]
    result = check(tmp_path / "set", tmp_path)
    assert texts_of(result, "layout") == [f"Folder layout: {layout.notes[0]}."]
    assert [dict(count.pictures) for count in result.classes] == [{"train": 9, "val": 9, "test": 9}] * 2
    assert result.ignored == 0


def test_training_and_testing_are_splits_and_validation_is_drawn(tmp_path: Path) -> None:
    draw(tmp_path / "training", COUNTS)
    draw(tmp_path / "testing", {"ant": 4, "bee": 4}, seed=1)
    dataset = dataset_files.find_images(domain_of(tmp_path), tmp_path)
    assert {split: len(files) for split, files in dataset.files.items()} == {"train": 16, "val": 2, "test": 8}


def test_plain_folders_need_no_note(tmp_path: Path) -> None:
    draw(tmp_path / "classes", COUNTS)
    for name in ("train", "val", "test"):
        draw(tmp_path / "splits" / name, COUNTS)
    (tmp_path / "splits" / "README.md").write_text("")
    assert read_layout(tmp_path / "classes").notes == ()
    assert read_layout(tmp_path / "splits").notes == ()
    assert split_names(read_layout(tmp_path / "splits")) == {"train": "train", "val": "val", "test": "test"}


@pytest.mark.parametrize("name", ["train", "Training", "valid", "dev"])
def test_a_class_with_the_name_of_a_split_stays_a_class(tmp_path: Path, name: str) -> None:
    dataset = dataset_files.find_images(domain_of(draw(tmp_path / "set", {name: 9, "bus": 9})), tmp_path)
    assert dataset.classes == tuple(sorted((name, "bus")))
    assert [count.label for count in check(tmp_path / "set", tmp_path).classes] == sorted((name, "bus"))


def draw_flat_test(folder: Path) -> None:
    draw(folder / "train", COUNTS)
    draw(folder, {"test": 9})


def draw_two_validation_splits(folder: Path) -> None:
    for name in ("train", "val", "Valid"):
        draw(folder / name, COUNTS)


def draw_splits_without_classes(folder: Path) -> None:
    draw(folder, {"Train": 9, "Test": 9})


def draw_unlabelled_test_images(folder: Path) -> None:
    draw(folder, {"ant": 9, "bee": 9, "test": 9})


def draw_empty_split(folder: Path) -> None:
    draw(folder / "train", COUNTS)
    (folder / "Testing").mkdir()


def draw_another_name(folder: Path) -> None:
    for name in ("train", "eval"):
        draw(folder / name, COUNTS)


def draw_other_names(folder: Path) -> None:
    for name in ("train_images", "test_images"):
        draw(folder / name, COUNTS)


def draw_test_without_train(folder: Path) -> None:
    for name in ("Test", "photos"):
        draw(folder / name, COUNTS)


LOOKS_LIKE_SPLITS: dict[str, tuple[Callable[[Path], None], str]] = {
    "flat test": (draw_flat_test, "test/ looks like the test split, but images lie directly in it"),
    "two": (draw_two_validation_splits, "several folders for the validation split: Valid/ and val/"),
    "flat": (
        draw_splits_without_classes,
        "Test/ looks like a split, but images lie directly in it, not in class folders",
    ),
    "unlabelled": (draw_unlabelled_test_images, "test/ looks like a split, but images lie directly in it"),
    "empty": (draw_empty_split, "Testing/ looks like the test split, but holds no images"),
    "another name": (
        draw_another_name,
        "eval/ looks like a split, but its name is not that of one; accepted are train/",
    ),
    "other names": (draw_other_names, "test_images/ and train_images/ look like splits, but their names"),
    "no train": (draw_test_without_train, "Test/ looks like a split, but photos/ beside it does not"),
}


@pytest.mark.parametrize("case", LOOKS_LIKE_SPLITS)
def test_a_folder_that_looks_like_a_split_and_is_not_taken_is_an_error(tmp_path: Path, case: str) -> None:
    make, message = LOOKS_LIKE_SPLITS[case]
    make(tmp_path / "set")
    assert message in error_of(tmp_path / "set")
    (refused,) = texts_of(check(tmp_path / "set", tmp_path), "refused")
    assert message in refused


def test_folders_that_the_domain_lists_as_classes_are_classes(tmp_path: Path) -> None:
    draw_test_without_train(tmp_path / "set")
    dataset = dataset_files.find_images(domain_of(tmp_path / "set", ("photos", "Test")), tmp_path)
    assert dataset.classes == ("photos", "Test")


def test_image_folders_beside_the_splits_are_noted(tmp_path: Path) -> None:
    for name in ("train", "test"):
        draw(tmp_path / name, COUNTS)
    draw(tmp_path, {"figures": 2})
    assert read_layout(tmp_path).notes == ("figures/ beside the splits is not used",)


@pytest.mark.parametrize("splits", [(), ("train", "valid")])
def test_one_outer_folder_is_entered_and_named(tmp_path: Path, splits: tuple[str, ...]) -> None:
    inner = tmp_path / "set" / "dataset-v2"
    for folder in [inner / split for split in splits] or [inner]:
        draw(folder, COUNTS)
    (tmp_path / "set" / "__MACOSX").mkdir()
    (tmp_path / "set" / "README.txt").write_text("")
    assert "dataset-v2/, is read as the folder of the " in read_layout(tmp_path / "set").notes[0]
    outer, direct = (dataset_files.find_images(domain_of(folder), tmp_path) for folder in (inner.parent, inner))
    assert outer == direct
    result = check(tmp_path / "set", tmp_path)
    assert (result.pictures, result.ignored) == (sum(len(files) for files in direct.files.values()), 1)
    assert len(texts_of(result, "layout")) == 1 + bool(splits)


def test_an_outer_folder_may_have_the_name_of_a_split(tmp_path: Path) -> None:
    for split in ("train", "test"):
        draw(tmp_path / "test" / split, COUNTS)
    assert split_names(read_layout(tmp_path)) == {"train": "train", "test": "test"}
    shutil.rmtree(tmp_path / "test" / "train")
    assert "no train/" in error_of(tmp_path)


def test_a_single_class_is_no_outer_folder(tmp_path: Path) -> None:
    assert "a single class, 'ant'" in error_of(draw(tmp_path / "single", {"ant": 9}))
    draw(tmp_path / "deep" / "outer" / "archive", COUNTS)
    assert f"give --data {tmp_path / 'deep' / 'outer' / 'archive'}" in error_of(tmp_path / "deep")


def test_two_unicode_forms_in_two_splits_are_one_class(tmp_path: Path) -> None:
    for split, form in (("train", NFC), ("val", NFD), ("test", NFC)):
        draw(tmp_path / "set" / split, {form: 9, "b": 9})
    dataset = dataset_files.find_images(domain_of(tmp_path / "set"), tmp_path)
    assert dataset.classes == ("b", NFC)
    assert [len(dataset.files[split]) for split in ("train", "val", "test")] == [18, 18, 18]
    (note,) = read_layout(tmp_path / "set").notes
    assert f"'{NFC}' (NFC, '\\xe9') in train/, test/" in note
    assert f"'{NFD}' (NFD, 'e\\u0301') in val/" in note
    assert set(dataset_files.list_by_class(domain_of(tmp_path / "set"), tmp_path)) == {"b", NFC}
    assert [count.label for count in check(tmp_path / "set", tmp_path).classes] == ["b", NFC]


def test_the_domains_spelling_of_a_class_is_kept(tmp_path: Path) -> None:
    folder = draw(tmp_path / "set", {NFD: 9, "b": 9})
    assert dataset_files.find_images(domain_of(folder), tmp_path).classes == ("b", NFD)
    listed = dataset_files.find_images(domain_of(folder, (NFC, "b")), tmp_path)
    assert listed.classes == (NFC, "b")
    assert {
        path.parent.name for path, label in zip(listed.files["test"], listed.labels["test"], strict=True) if not label
    } == {NFD}


@pytest.mark.parametrize(
    ("splits", "spellings"),
    [
        (({"Cat": 9, "dog": 9, "cat": 9},), ("'Cat', 'cat'",)),
        (({"Cat": 9, "dog": 9}, {"cat": 9, "dog": 9}), ("'Cat' in train/", "'cat' in test/", "case only")),
        (({NFC: 9, NFD: 9},), ("(NFC, '\\xe9')", "(NFD, 'e\\u0301')", "Unicode form")),
        (({"É": 9, "b": 9}, {NFD: 9, "b": 9}), ("'É' in train/", f"'{NFD}' in test/", "case only")),
    ],
)
def test_class_names_that_look_the_same_are_an_error(
    tmp_path: Path, splits: tuple[dict[str, int], ...], spellings: tuple[str, ...]
) -> None:
    folder = tmp_path / "set"
    for split, counts in zip(("train", "test") if len(splits) > 1 else ("",), splits, strict=True):
        draw(folder / split, counts)
    message = error_of(folder)
    for spelling in spellings:
        assert spelling in message
    (refused,) = texts_of(check(folder, tmp_path), "refused")
    assert spellings[0] in refused


def test_images_of_browsers_and_the_web_are_read(tmp_path: Path) -> None:
    folder = draw(tmp_path / "set", COUNTS)
    for number, suffix in enumerate(("jfif", "webp", "avif", "tif", "TIFF")):
        path = folder / "ant" / f"{number:03d}.png"
        image_format = {"jfif": "JPEG", "tif": "TIFF"}.get(suffix, suffix.upper())
        if image_formats.is_readable(path.with_suffix(f".{suffix}")):
            with Image.open(path) as image:
                image.save(path.with_suffix(f".{suffix}"), image_format)
            path.unlink()
    dataset = dataset_files.find_images(domain_of(folder), tmp_path)
    assert sum(len(files) for files in dataset.files.values()) == 18
    result = check(folder, tmp_path)
    assert (result.pictures, result.unreadable, result.ignored) == (18, 0, 0)


@pytest.mark.parametrize("name", ["avif", "webp"])
def test_a_pillow_without_a_codec_does_not_read_its_files(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    supported = features.check
    monkeypatch.setattr(features, "check", lambda feature: feature != name and supported(feature))
    image_formats.readable_suffixes.cache_clear()
    try:
        assert not image_formats.is_readable(Path(f"x.{name}"))
        assert image_formats.is_image(Path(f"x.{name}"))
        assert image_formats.is_readable(Path("x.JFIF"))
        assert not image_formats.has_feature("a codec of the future")
    finally:
        image_formats.readable_suffixes.cache_clear()


def test_images_that_are_not_read_are_listed_by_suffix(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = draw(tmp_path / "set", COUNTS)
    for name in ("ant/a.heic", "ant/b.HEIC", "bee/c.raw"):
        (folder / name).write_bytes(b"x")
    text = "3 images are not read and will not be used (2 .heic, 1 .raw): convert them to JPEG or PNG"
    dataset_format.check(domain_of(folder), tmp_path)
    read_as = f"data: {folder} is read as class folders: 2 classes, 18 images (splits are drawn)"
    assert capsys.readouterr().out == f"{read_as}\ndata: {text}\n"
    assert texts_of(check(folder, tmp_path), "unread formats") == [f"{text}."]
    for path in (folder / "bee").glob("*.png"):
        path.unlink()
    message = error_of(folder)
    assert "class 'bee' has no images" in message
    assert "(1 .raw); convert them to JPEG or PNG" in message
    shutil.rmtree(folder / "ant")
    assert "no images that can be read: 1 .raw in it" in error_of(folder)


def test_wrong_folders_are_told_apart(tmp_path: Path) -> None:
    assert "does not exist; give one with" in error_of(tmp_path / "nowhere")
    (tmp_path / "set.zip").write_bytes(b"PK")
    assert "unpack it if it is an archive" in error_of(tmp_path / "set.zip")
    flat = draw(tmp_path, {"flat": 9}) / "flat"
    assert "has no class folders: 9 images lie directly in it" in error_of(flat)
    (tmp_path / "text" / "ant").mkdir(parents=True)
    (tmp_path / "text" / "ant" / "x.txt").write_text("")
    assert "has no images in class folders" in error_of(tmp_path / "text")
    for folder in (tmp_path / "nowhere", tmp_path / "set.zip", tmp_path / "text"):
        with pytest.raises(ToolchainError):
            dataset_format.check_readable(domain_of(folder), tmp_path)
    dataset_format.check(dataclasses.replace(domain_of(tmp_path / "nowhere"), source="digits"), tmp_path)


def test_links_to_class_folders_are_followed(tmp_path: Path) -> None:
    draw(tmp_path / "elsewhere", COUNTS)
    for name in COUNTS:
        (tmp_path / "set" / "train").mkdir(parents=True, exist_ok=True)
        (tmp_path / "set" / "train" / name).symlink_to(tmp_path / "elsewhere" / name)
    dataset_format.check_readable(domain_of(tmp_path / "set"), tmp_path)
    assert len(dataset_files.list_by_class(domain_of(tmp_path / "set"), tmp_path)["ant"]) == 9


@pytest.mark.parametrize("verb", ["export", "adapt", "check-data", "gate"])
def test_a_wrong_folder_is_reported_before_anything_slow_is_imported(tmp_path: Path, verb: str) -> None:
    (tmp_path / "empty").mkdir()
    code = (
        "import sys\nfrom toolchain.cli.main import main\n"
        f"sys.argv = ['toolchain', {verb!r}, '--data', {str(tmp_path / 'empty')!r}]\n"
        "try:\n    main()\n"
        "finally:\n    print([name for name in ('torch', 'scipy') if name in sys.modules])"
    )
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, cwd=ROOT)
    assert ended.returncode == 2, ended.stderr
    assert "has no class folders" in ended.stderr
    assert ended.stdout.strip().endswith("[]")
