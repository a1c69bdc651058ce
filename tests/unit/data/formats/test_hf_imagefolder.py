"""Hugging Face imagefolder: metadata.csv or metadata.jsonl beside the images, with or without labels."""

import json
from pathlib import Path

import pytest
from conftest import draw
from unit.data.formats.test_csv_file import domain_of, error_of, rows_of, write

from toolchain.data import dataset_files, dataset_format

COUNTS = {"ant": 6, "bee": 6}


@pytest.fixture
def images(tmp_path: Path) -> Path:
    for seed, split in enumerate(("train", "validation", "test")):
        draw(tmp_path / "set" / split, COUNTS, seed=seed)
    return tmp_path / "set"


@pytest.mark.parametrize("suffix", ["csv", "jsonl"])
def test_metadata_in_the_folders_of_splits(images: Path, tmp_path: Path, suffix: str) -> None:
    folders = dataset_files.find_images(domain_of(images), tmp_path)
    for split in ("train", "validation", "test"):
        rows = rows_of(images / split)
        if suffix == "csv":
            write(images / split / "metadata.csv", ("file_name", "label"), rows)
        else:
            lines = [json.dumps({"file_name": name, "label": label, "size": 3}) for name, label in rows]
            (images / split / "metadata.jsonl").write_text("\n".join(lines))
    labelled = dataset_format.read(domain_of(images), tmp_path)
    assert labelled.title == f"a Hugging Face imagefolder (metadata.{suffix}, label = label)"
    assert dataset_files.find_images(domain_of(images), tmp_path).digest == folders.digest


def test_without_a_label_column_the_folders_are_the_labels(images: Path, tmp_path: Path) -> None:
    train = images / "train"
    folders = dataset_files.find_images(domain_of(train), tmp_path)
    write(train / "metadata.csv", ("file_name", "text"), [(name, "a photo") for name, _ in rows_of(train)])
    assert dataset_files.find_images(domain_of(train), tmp_path).digest == folders.digest
    for path in sorted(train.glob("*/*.png")):
        path.rename(train / f"{path.parent.name}{path.name}")
    write(train / "metadata.csv", ("file_name", "text"), [(path.name, "") for path in sorted(train.glob("*.png"))])
    message = error_of(train)
    assert "no label in metadata.csv lines 2, 3, 4 and 9 more" in message
    assert "metadata.csv has no label column (file_name, text): add one" in message


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", "metadata.jsonl line 2 is not valid JSON"),
        ("[1]", "metadata.jsonl line 2 is no JSON object"),
        ('{"file_name": "ant/001.png", "label": ["ant", "bee"]}', 'label \'["ant", "bee"]\' holds several classes'),
        ('{"file_name": "ant/001.png"}', "has no label in 1 of 2 rows (lines 2)"),
    ],
)
def test_bad_lines_are_named(images: Path, line: str, message: str) -> None:
    (images / "train/metadata.jsonl").write_text(f'{{"file_name": "ant/000.png", "label": "ant"}}\n{line}\n')
    assert message in error_of(images / "train")
