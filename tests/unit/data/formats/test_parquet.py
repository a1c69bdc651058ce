"""Parquet shards as Hugging Face writes them: images are written once, and are then the same dataset as class folders."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest
from conftest import draw
from unit.data.formats.test_csv_file import domain_of, error_of, rows_of

from toolchain.data import dataset_files, dataset_format

NAMES = ["bee", "ant"]


@pytest.fixture
def images(tmp_path: Path) -> Path:
    for seed, split in enumerate(("train", "val", "test")):
        draw(tmp_path / "set" / split, {"ant": 6, "bee": 6}, seed=seed)
    return tmp_path / "set"


def write_shard(path: Path, cells: list[dict[str, Any]], labels: list[Any], names: list[str] | None = None) -> None:
    pyarrow = pytest.importorskip("pyarrow", reason="needs pyarrow, of the extra [hf]")
    parquet = pytest.importorskip("pyarrow.parquet")
    kind = pyarrow.struct([("bytes", pyarrow.binary()), ("path", pyarrow.string())])
    table = pyarrow.table({"image": pyarrow.array(cells, kind), "label": pyarrow.array(labels)})
    if names:
        features = {"image": {"_type": "Image"}, "label": {"names": names, "_type": "ClassLabel"}}
        table = table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})
    path.parent.mkdir(parents=True, exist_ok=True)
    parquet.write_table(table, path)


def cells_of(folder: Path) -> list[dict[str, Any]]:
    return [{"bytes": (folder / name).read_bytes(), "path": Path(name).name} for name, _ in rows_of(folder)]


def write_shards(images: Path, folder: Path) -> None:
    for split, title in (("train", "train"), ("val", "validation"), ("test", "test")):
        labels = [NAMES.index(label) for _, label in rows_of(images / split)]
        write_shard(folder / f"{title}-00000-of-00001.parquet", cells_of(images / split), labels, NAMES)


def test_shards_are_the_same_dataset_as_class_folders(images: Path, tmp_path: Path) -> None:
    write_shards(images, tmp_path / "shards/data")
    listed = dataset_files.find_images(domain_of(tmp_path / "shards"), tmp_path / "cache")
    folders = dataset_files.find_images(domain_of(images, classes=tuple(NAMES)), tmp_path)
    assert listed.classes == ("bee", "ant")  # the order of the ClassLabel
    assert listed.digest == folders.digest
    written = {path: path.stat().st_mtime_ns for path in listed.files["train"]}
    assert dataset_files.find_images(domain_of(tmp_path / "shards"), tmp_path / "cache") == listed
    assert {path: path.stat().st_mtime_ns for path in listed.files["train"]} == written  # written once


def test_one_file_without_metadata_or_names(images: Path, tmp_path: Path) -> None:
    cells = [{"bytes": cell["bytes"], "path": None} for cell in cells_of(images / "train")]
    write_shard(tmp_path / "all.parquet", cells, [label for _, label in rows_of(images / "train")])
    listed = dataset_files.find_images(domain_of(tmp_path / "all.parquet"), tmp_path / "cache")
    assert listed.classes == ("ant", "bee")
    assert sum(map(len, listed.files.values())) == 12
    assert {path.suffix for path in listed.files["train"]} == {".png"}


def test_bad_shards_are_told(images: Path, tmp_path: Path) -> None:
    shard = tmp_path / "x.parquet"
    cells = cells_of(images / "train")
    write_shard(shard, cells, [0] * 11 + [-1], NAMES)
    assert "no label in x.parquet line 12; write the name of the class" in error_of(shard)
    write_shard(shard, [{"bytes": None, "path": "gone.png"}, *cells[1:]], [0, 1] * 6, NAMES)
    assert "x.parquet row 1 has no image: no bytes, and no file 'gone.png'" in error_of(shard)
    assert "label_column = 'colour' in the domain" in error_of(shard, label_column="colour")
    shard.write_bytes(shard.read_bytes()[:300])
    assert "x.parquet cannot be read as parquet" in error_of(shard)
    write_shards(images, tmp_path / "shards")
    write_shard(tmp_path / "shards/test-00000-of-00001.parquet", cells, [0] * 12, ["bee", "wasp"])
    assert "has other columns or class names than" in error_of(tmp_path / "shards")


def test_without_pyarrow_the_command_that_installs_it_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    (tmp_path / "x.parquet").write_bytes(b"PAR1")
    assert "need pyarrow, which is not installed: pip install 'edge-toolchain[hf]'" in error_of(tmp_path / "x.parquet")
    assert not any(each.recognise(tmp_path / "no.zip") for each in dataset_format.list_formats())
