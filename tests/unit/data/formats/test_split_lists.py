"""Text files that list the images of a split: labels as names, indices or folders."""

from pathlib import Path

import pytest
from conftest import draw
from unit.data.formats.test_csv_file import domain_of, error_of, rows_of

from toolchain.data import dataset_files, dataset_format
from toolchain.data.dataset_files import DatasetFiles

LINES = {
    "blank": lambda name, label: f"{name} {label}",
    "tab": lambda name, label: f"{name}\t{label}",
    "path": lambda name, label: name,
    "index": lambda name, label: f"{name} {('ant', 'bee').index(label)}",
    "windows": lambda name, label: name.replace("/", "\\") + f" {label}",
}


@pytest.fixture
def images(tmp_path: Path) -> Path:
    return draw(tmp_path / "set" / "images", {"ant": 12, "bee": 12}).parent


def write_lists(folder: Path, kind: str, ends: str = "\n") -> None:
    rows = rows_of(folder / "images")
    for split, part in (("train", rows[::2]), ("val", rows[1::4]), ("test", rows[3::4])):
        text = ends.join(LINES[kind](*row) for row in part)
        (folder / f"{split}.txt").write_text(text + ends, encoding="utf-8-sig", newline="")
    if kind == "index":
        (folder / "classes.txt").write_text("0 ant\n1 bee\n")


def summary(listed: DatasetFiles) -> tuple[dict[str, int], list[str]]:
    return {split: len(paths) for split, paths in listed.files.items()}, [
        listed.classes[label] + path.name for path, label in zip(listed.files["val"], listed.labels["val"], strict=True)
    ]


@pytest.mark.parametrize("kind", LINES)
@pytest.mark.parametrize("ends", ["\n", "\r\n"], ids=["LF", "CRLF"])
def test_lists_give_files_labels_and_splits(images: Path, tmp_path: Path, kind: str, ends: str) -> None:
    write_lists(images, kind, ends)
    listed = dataset_files.find_images(domain_of(images), tmp_path)
    assert listed.root == images / "images"
    expected = ["ant001.png", "ant005.png", "ant009.png", "bee001.png", "bee005.png", "bee009.png"]
    assert summary(listed) == ({"train": 12, "val": 6, "test": 6}, expected)
    title = dataset_format.read(domain_of(images), tmp_path).title
    assert title.startswith("split lists (test.txt, train.txt, val.txt; each line path")


def test_one_list_is_split_here(images: Path, tmp_path: Path) -> None:
    (images / "all.txt").write_text("".join(f"images/{name}\n" for name, _ in rows_of(images / "images")))
    listed = dataset_files.find_images(domain_of(images / "all.txt"), tmp_path)
    assert listed.digest == dataset_files.find_images(domain_of(images / "images"), tmp_path).digest


def test_names_with_blanks(images: Path, tmp_path: Path) -> None:
    (images / "images/ant/000.png").rename(images / "images/ant/my photo.png")
    write_lists(images, "blank")
    by_class = dataset_files.list_by_class(domain_of(images), tmp_path)
    assert images / "images/ant/my photo.png" in by_class["ant"]


def test_class_folders_with_another_text_file_stay_class_folders(images: Path, tmp_path: Path) -> None:
    (images / "train.txt").write_text("how these were taken\n")
    assert dataset_format.read(domain_of(images), tmp_path).title == "class folders"


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("ant/000.png", "line 13: 'ant/000.png' is not `path label` as other lines are"),
        ("ant/000.png wasp", "line 13: label 'wasp' is not in classes.txt; Accepted: ant, bee"),
        ("ant/999.png ant", "names 1 of 13 files that do not exist: ant/999.png (line 13)"),
        ("ant/001.png ant", "ant/001.png has two splits: 'train' (train.txt line 13) and 'val' (val.txt line 1)"),
    ],
)
def test_bad_lines_are_named(images: Path, line: str, message: str) -> None:
    write_lists(images, "blank")
    (images / "classes.txt").write_text("ant\nbee\n")
    with (images / "train.txt").open("a") as file:
        file.write(line)
    assert message in error_of(images)


def test_indices_without_a_name_and_bad_name_files_are_told(images: Path) -> None:
    write_lists(images, "index")
    (images / "classes.txt").write_text("ant\nbee\n")
    with (images / "train.txt").open("a") as file:
        file.write("ant/000.png 2")
    assert "line 13: label 2 is no index into classes.txt, which has 2 names (indices 0 to 1)" in error_of(images)
    for text, message in (
        ("ant\nbee\nant\n", "classes.txt has 'ant' in lines 1 and 3"),
        ("ant\nbee\nAnt\n", "has names that differ in case only: 'ant' (line 1) and 'Ant' (line 3)"),
        ("ant\n\nbee\n", "classes.txt has no name in line 2"),
        ("", "classes.txt has 0 names"),
    ):
        (images / "classes.txt").write_text(text)
        assert message in error_of(images)


def test_an_empty_list_is_told(images: Path) -> None:
    write_lists(images, "blank")
    (images / "val.txt").write_text("\n")
    assert "val.txt is empty; give it one line per image" in error_of(images)
