"""A CSV of file and label is the same dataset as class folders of the same files; bad rows are named, one message each."""

import csv
import dataclasses
import io
from pathlib import Path

import pytest
from conftest import draw
from PIL import Image

from toolchain.config.dataset import Domain
from toolchain.core.errors import ToolchainError
from toolchain.data import dataset_files, dataset_format
from toolchain.data.checks import run_checks

COUNTS = {"ant": 12, "bee": 12}
Row = tuple[str, ...]


@pytest.fixture
def images(tmp_path: Path) -> Path:
    return draw(tmp_path / "set", COUNTS)


def domain_of(path: Path, **settings: object) -> Domain:
    return dataclasses.replace(Domain(name="x", path=str(path), mode="gray", image_size=(32, 32)), **settings)  # type: ignore[arg-type]


def rows_of(images: Path) -> list[Row]:
    """Return (file relative to the folder, class) of all images."""
    return [(path.relative_to(images).as_posix(), path.parent.name) for path in sorted(images.glob("*/*.png"))]


def write(path: Path, header: Row, rows: list[Row], *, delimiter: str = ",", encoding: str = "utf-8") -> Path:
    text = io.StringIO(newline="")
    csv.writer(text, delimiter=delimiter).writerows([header, *rows])
    path.write_bytes(text.getvalue().encode(encoding))
    return path


def error_of(path: Path, **settings: object) -> str:
    with pytest.raises(ToolchainError) as error:
        dataset_format.check(domain_of(path, **settings), path.parent / "cache")
    return str(error.value)


@pytest.mark.parametrize(
    ("header", "delimiter", "encoding"),
    [
        pytest.param(("file", "label"), ",", "utf-8", id="plain"),
        pytest.param(("File Name", "Category"), ";", "utf-8-sig", id="semicolons and BOM"),
        pytest.param(("image_path", "TARGET"), "\t", "utf-16", id="tabs and UTF-16"),
    ],
)
def test_a_csv_is_the_same_dataset_as_class_folders(
    images: Path, tmp_path: Path, header: Row, delimiter: str, encoding: str
) -> None:
    rows = rows_of(images)[::-1]  # the order of rows decides nothing
    table = write(images / "images.csv", header, rows, delimiter=delimiter, encoding=encoding)
    folders = dataset_files.find_images(domain_of(images), tmp_path)
    listed = dataset_files.find_images(domain_of(table), tmp_path)
    assert listed == folders
    assert len(listed.files["train"]) > 10


def test_paths_may_be_absolute_windows_quoted_and_in_another_folder(images: Path, tmp_path: Path) -> None:
    folders = dataset_files.find_images(domain_of(images), tmp_path)
    (tmp_path / "tables").mkdir()
    rows = rows_of(images)
    absolute = write(
        tmp_path / "tables/a.csv", ("file", "label"), [(str(images / name), label) for name, label in rows]
    )
    windows = write(
        images / "b.csv", ("file", "label"), [(".\\" + name.replace("/", "\\"), label) for name, label in rows]
    )
    elsewhere = write(tmp_path / "tables/c.csv", ("file", "label"), rows)
    given = domain_of(elsewhere, images=str(images))
    for domain in (domain_of(absolute), domain_of(windows), given):
        assert dataset_files.find_images(domain, tmp_path).digest == folders.digest
    images.rename(tmp_path / "tables" / "images")
    assert dataset_files.find_images(domain_of(elsewhere), tmp_path).digest == folders.digest
    comma = tmp_path / "tables/images/ant/a, b.png"
    Image.new("L", (9, 9)).save(comma)
    write(elsewhere, ("file", "label"), [*rows, ("ant/a, b.png", "ant")])
    assert comma in dataset_files.list_by_class(domain_of(elsewhere), tmp_path)["ant"]


def test_splits_are_those_of_the_column_and_missing_ones_are_drawn(
    images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [(*row, "Testing" if row[0].endswith(("0.png", "1.png")) else "Train") for row in rows_of(images)]
    table = write(images / "images.csv", ("file", "label", "Split"), rows)
    dataset_format.check(domain_of(table), tmp_path)
    assert capsys.readouterr().out == (
        f"data: {table} is read as CSV (file = file, label = label, split = Split): 2 classes, 24 images (train 16, test 8)\n"
    )
    listed = dataset_files.find_images(domain_of(table), tmp_path)
    assert {path.name for path in listed.files["test"]} == {"000.png", "001.png", "010.png", "011.png"}
    assert len(listed.files["val"]) > 1


def test_a_csv_a_split_in_a_folder_is_one_dataset(images: Path, tmp_path: Path) -> None:
    rows = rows_of(images)
    write(images / "train.csv", ("file", "label"), rows[1::2])
    write(images / "test.csv", ("file", "label"), rows[::2])
    listed = dataset_files.find_images(domain_of(images), tmp_path)
    assert len(listed.files["test"]) == 12
    assert len(listed.files["train"]) + len(listed.files["val"]) == 12


def test_groups_stay_together_and_divided_ones_are_severe(images: Path, tmp_path: Path) -> None:
    rows = [(name, label, f"{label}{int(Path(name).stem) // 3}") for name, label in rows_of(images)]
    table = write(images / "images.csv", ("file", "label", "Scene"), rows)
    listed = dataset_files.find_images(domain_of(table), tmp_path)
    splits: dict[str, set[str]] = {}
    group_of = {images / name: group for name, _, group in rows}
    for split, files in listed.files.items():
        for path in files:
            splits.setdefault(group_of[path], set()).add(split)
    assert [len(places) for places in splits.values()] == [1] * 8
    checked = run_checks.check_dataset(domain_of(table), tmp_path)
    (finding,) = [finding for finding in checked.findings if finding.kind == "groups"]
    assert (finding.severity, "8 exposure groups by the group column" in finding.text) == ("note", True)
    divided = [(*row, ("train", "val", "test")[number % 3]) for number, row in enumerate(rows)]
    write(table, ("file", "label", "group", "split"), divided)
    checked = run_checks.check_dataset(domain_of(table), tmp_path)
    severities = {finding.kind: finding.severity for finding in checked.findings}
    assert (severities["groups"], severities["layout"]) == ("severe", "note")


def test_class_order_is_that_of_the_labels_file_then_of_names(images: Path, tmp_path: Path) -> None:
    rows = rows_of(images)
    table = write(images / "images.csv", ("file", "label"), rows)
    assert dataset_files.find_images(domain_of(table), tmp_path).classes == ("ant", "bee")
    (tmp_path / "names.txt").write_text("bee\nant\n")
    for path in (table, images):  # of a CSV and of class folders
        listed = dataset_files.find_images(domain_of(path, labels=str(tmp_path / "names.txt")), tmp_path)
        assert listed.classes == ("bee", "ant")
    write(table, ("file", "label"), [(name, str("ab".index(label[0]))) for name, label in rows])
    (images / "classes.txt").write_text("bee\nant\nwasp\n")
    labelled = dataset_format.read(domain_of(table), tmp_path)
    assert labelled.classes == ("bee", "ant")
    assert "1 class names without images are left out: wasp" in labelled.notes[0]
    assert {path.parent.name for path in labelled.images["all"]["bee"]} == {"ant"}  # index 0 is the first name
    (images / "classes.txt").write_text("bee\n")
    assert "classes.txt has 1 names" in error_of(table)


def test_images_that_no_row_names_are_a_finding(images: Path, tmp_path: Path) -> None:
    rows = rows_of(images)
    table = write(images / "images.csv", ("file", "label"), [*rows[2:], rows[5]])
    (images / "ant" / "phone.heic").write_bytes(b"x")
    result = run_checks.check_dataset(domain_of(table), tmp_path)
    by_kind = {finding.kind: finding for finding in result.findings}
    assert by_kind["images without a row"].files == ("ant/000.png", "ant/001.png", "ant/phone.heic")
    assert "no row of images.csv names them" in by_kind["images without a row"].text
    assert "1 row repeats a file with the same label and is read once: ant/005.png" in by_kind["layout"].text
    assert (result.pictures, result.ignored) == (22, 3)


def test_corrupt_and_unread_images_are_treated_as_in_class_folders(images: Path, tmp_path: Path) -> None:
    (images / "ant" / "000.png").write_bytes(b"no image")
    (images / "ant" / "phone.heic").write_bytes(b"x")
    table = write(images / "images.csv", ("file", "label"), [*rows_of(images), ("ant/phone.heic", "ant")])
    result = run_checks.check_dataset(domain_of(table), tmp_path)
    by_kind = {finding.kind: finding for finding in result.findings}
    assert by_kind["unreadable"].files == ("ant/000.png",)
    assert by_kind["unread formats"].files == ("ant/phone.heic",)


HEADER = "file,label\n"
GOOD = "".join(f"{label}/{number:03d}.png,{label}\n" for label in COUNTS for number in range(12))
BAD = {
    "empty": ("", "is empty"),
    "header alone": (HEADER, "has a header, but no rows"),
    "no header": (GOOD, "has no header: line 1 is ant/000.png, ant. Write the names of the columns above it, such as file,label"),
    "no label column": (GOOD.replace("ant/000.png,ant", "file,colour", 1), "has no label column; its columns: file, colour"),
    "no file column": ("id,label\n" + GOOD[GOOD.index("\n") + 1 :], "has no file column; its columns: id, label"),
    "two label columns": ("file,label,class\nant/000.png,ant,ant\n", "has 2 columns that may hold the label: 'label', 'class'"),
    "one hot": ("file,ant,bee\nant/000.png,1,0\nbee/000.png,0,1\n", "ant, bee hold 0 and 1: write the name"),
    "unknown files": (
        HEADER + GOOD + "".join(f"ant/x{number}.png,ant\n" for number in range(5)),
        "names 5 of 29 files that do not exist: ant/x0.png (line 26), ant/x1.png (line 27), ant/x2.png (line 28). They were",
    ),
    "another case": (HEADER + GOOD + "ant/000.PNG,ant\n", "did you mean '000.png'? Names count to the letter"),
    "no suffix": (HEADER + "ant/000,ant\n", "did you mean '000.png'?"),
    "another computer": (HEADER + GOOD + "C:\\photos\\a.png,ant\n", "is the path of another computer"),
    "address": (HEADER + GOOD + "https://example.org/a.png,ant\n", "download the images first"),
    "folder": (HEADER + GOOD + "ant,ant\n", "ant is a folder: name the image files in it"),
    "two labels": (HEADER + GOOD + "ant/003.png,bee\n", "ant/003.png has two labels: 'ant' (images.csv line 5) and 'bee' (images.csv line 26)"),
    "empty labels": (HEADER + GOOD + "ant/003.png,\nant/004.png,  \n", "has no label in 2 of 26 rows (lines 26, 27)"),
    "empty file": (HEADER + GOOD + ",ant\n", "line 26 names no file"),
    "case": (HEADER + GOOD.replace("bee/004.png,bee", "bee/004.png,Bee"), "differ in case only: 'bee' (images.csv line 14) and 'Bee' (images.csv line 18)"),
    "split": ("file,label,split\n" + GOOD.replace("\n", ",train\n") + "ant/000.png,ant,holdout\n", "line 26: split 'holdout' is not one that is accepted; accepted are train/training; val/valid"),
    "no split": ("file,label,split\n" + GOOD.replace("\n", ",train\n", 23), "line 25: no split, while other rows have one"),
    "no train": ("file,label,split\n" + GOOD.replace("\n", ",test\n"), "has images for test, but none for train"),
    "two splits": ("file,label,split\n" + GOOD.replace("\n", ",train\n") + "ant/000.png,ant,test\n", "ant/000.png has two splits: 'train'"),
    "several classes": (HEADER + GOOD + "ant/000.png,ant|bee\n", "line 26: label 'ant|bee' holds several classes"),
    "several classes, one unknown": (HEADER + GOOD + "ant/000.png,ant|wasp\n", "label 'ant|wasp' holds several classes"),
    "several classes, comma": (HEADER + GOOD + 'ant/000.png,"ant,bee"\n', "label 'ant,bee' holds several classes"),
    "numbers": (HEADER + "".join(f"ant/{number:03d}.png,{number / 7:.3f}\n" for number in range(12)), "has 12 different labels in 12 rows ('0.000', '0.143', '0.286', ...): these are numbers to predict (regression)"),
    "captions": (HEADER + "".join(f"ant/{number:03d}.png,text {number}\n" for number in range(12)), "these are no classes, which repeat"),
    "single class": (HEADER + GOOD[: len(GOOD) // 2], "has a single class, 'ant'"),
    "extra field": (HEADER + GOOD + "ant/000.png,ant,bee\n", "line 26 has 3 fields, but the header has 2 (file, label); put quotes"),
    "open quote": (HEADER + GOOD + '"ant/000.png,ant\n', "line 26: a field's quotes do not match"),
    "binary": (HEADER + GOOD + "\0,ant\n", "line 26 is not text"),
}  # fmt: skip


@pytest.mark.parametrize("kind", BAD)
@pytest.mark.parametrize("ends", ["\n", "\r\n"], ids=["LF", "CRLF"])
def test_bad_rows_are_named(images: Path, kind: str, ends: str) -> None:
    text, message = BAD[kind]
    (images / "images.csv").write_text(text, newline=ends)
    assert message in error_of(images / "images.csv")


def test_latin_1_bytes_are_named(images: Path) -> None:
    (images / "images.csv").write_bytes((HEADER + GOOD).encode() + "ant/café.png,ant\n".encode("latin-1"))
    assert "images.csv line 26: byte 0xe9 is not UTF-8 text; accepted are UTF-8 and UTF-16; save it as" in error_of(
        images / "images.csv"
    )


def test_files_that_may_not_be_read_are_named(images: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.access", lambda path, mode: Path(path).name != "003.png")  # root reads everything
    table = write(images / "images.csv", ("file", "label"), rows_of(images))
    assert "names 2 files that cannot be read: ant/003.png (line 5), bee/003.png (line 17)" in error_of(table)


def test_a_folder_in_place_of_its_csv_is_told(tmp_path: Path) -> None:
    flat = draw(tmp_path, {"flat": 9}) / "flat"
    write(flat / "labels.csv", ("file", "label"), [("000.png", "a")])
    assert f"if labels.csv holds the labels, give --data {flat / 'labels.csv'}" in error_of(flat)
    (flat / "labels.xlsx").write_bytes(b"PK")
    assert "is a file of no format that is read here" in error_of(flat / "labels.xlsx")
    assert "in Excel: Save as, CSV UTF-8" in error_of(flat / "labels.xlsx")


def test_settings_that_name_nothing_are_told(images: Path) -> None:
    table = write(images / "images.csv", ("file", "label", "class"), [(*row, row[1]) for row in rows_of(images)])
    assert "label_column = 'clas' in the domain; did you mean 'class'?" in error_of(table, label_column="clas")
    assert "this folder does not exist" in error_of(table, label_column="class", images="nowhere")
    assert "labels file nowhere.txt cannot be read" in error_of(table, labels="nowhere.txt")
    assert "no images of 1 classes of domain 'x': wasp" in error_of(
        table, label_column="class", classes=("ant", "bee", "wasp")
    )
    assert "label 'bee' is not in the classes of domain 'x'" in error_of(
        table, label_column="class", classes=("ant", "wasp")
    )
