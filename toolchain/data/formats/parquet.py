"""Hugging Face parquet shards: a column of encoded images, {bytes, path}, and one of labels (ClassLabel or text).

The images are written once to the image cache, as files, so that everything after this reads files. Only pyarrow is
needed for it, the extra `[hf]`; `datasets` is not.
"""

import contextlib
import io
import json
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from toolchain.config.dataset import Domain
from toolchain.core import files, progress, registry
from toolchain.core.errors import ToolchainError, first_line
from toolchain.data.formats.folders.image_formats import is_readable
from toolchain.data.formats.folders.split_folders import Split, split_of_name
from toolchain.data.formats.tables import columns, list_rows
from toolchain.data.formats.tables.label_rows import LabelRow
from toolchain.data.formats.tables.list_rows import LabelTable
from toolchain.data.labelled_files import LabelledFiles

ORDER = 10
EXPECTED = "Hugging Face parquet shards with an image column and a label column"
INSTALL_COMMAND = "pip install 'edge-toolchain[hf]'"
VERSION = 1  # of how images are written
ROWS_PER_BATCH = 64  # images held in memory at a time
INDEX_FILE = "index.json"


@dataclass(frozen=True, kw_only=True)
class ImageColumns:
    """Names of the columns of a shard, and the class names by index where its metadata has them."""

    image: str
    label: str
    names: tuple[str, ...]


def recognise(path: Path) -> bool:
    """Return whether the path is a parquet file, or a folder that holds some."""
    return path.suffix == ".parquet" if path.is_file() else any(_list_shards(path))


def read(path: Path, domain: Domain, cache: Path) -> LabelledFiles:
    """Write the images of the shards to `cache`, unless they lie there, and list them.

    Raises:
        ToolchainError: pyarrow is not installed, a shard is damaged or has no image or label column, or as `list_rows`.
    """
    shards = _list_shards(path) if path.is_dir() else [path]
    described = _describe_columns(shards, domain.label_column)
    key = files.digest(VERSION, [(shard.name, files.sha256_file(shard)) for shard in shards], described)
    folder = cache / "parquet" / key
    with files.lock_folder(folder, wait=True):
        if not (folder / INDEX_FILE).exists():
            files.write_json(folder / INDEX_FILE, _write_images(shards, described, folder))
        index = files.read_json(folder / INDEX_FILE)
    rows = [
        LabelRow(
            table=shards[entry["shard"]], line=entry["row"], name=str((folder / entry["file"]).absolute()),
            label=entry["label"], split=entry["split"],
        )
        for entry in index
    ]  # fmt: skip
    title = f"{len(shards)} parquet shard{'s' if len(shards) > 1 else ''} (image = {described.image}, label = {described.label})"
    table = LabelTable(path=path, title=title, rows=rows, tables=tuple(shards), names=described.names)
    return list_rows.list_rows(table, domain)


def _list_shards(folder: Path) -> list[Path]:
    """List the parquet files of a folder: in it, in `data/`, or in the folders of splits."""
    return sorted(file for pattern in ("*.parquet", "*/*.parquet") for file in folder.glob(pattern) if file.is_file())


def _split_of_shard(shard: Path) -> Split | None:
    """Return the split of a shard such as train-00000-of-00002.parquet or validation/0000.parquet."""
    return split_of_name(re.split(r"[-_.]", shard.name)[0]) or split_of_name(shard.parent.name)


def _import_parquet() -> Any:
    try:
        import pyarrow.parquet
    except ImportError as reason:
        raise ToolchainError(f"parquet files need pyarrow, which is not installed: {INSTALL_COMMAND}") from reason
    return pyarrow.parquet


@contextlib.contextmanager
def _open_shard(shard: Path) -> Iterator[Any]:
    parquet = _import_parquet()
    import pyarrow

    try:
        with parquet.ParquetFile(shard) as opened:
            yield opened
    except (pyarrow.ArrowException, OSError) as reason:
        raise ToolchainError(f"{shard} cannot be read as parquet: {first_line(reason)}; copy it again") from reason


def _describe_columns(shards: Sequence[Path], label_column: str) -> ImageColumns:
    """Return the columns of the shards, which must be the same in all."""
    described = {shard: _describe_shard(shard, label_column) for shard in shards}
    first = described[shards[0]]
    for shard, other in described.items():
        if other != first:
            raise ToolchainError(
                f"{shard} has other columns or class names than {shards[0]}; give a folder with the shards of one dataset"
            )
    return first


def _describe_shard(shard: Path, label_column: str) -> ImageColumns:
    """Find the columns of a shard by the features that `datasets` writes into its metadata, or by their types and names."""
    with _open_shard(shard) as opened:
        schema = opened.schema_arrow
        features = _read_features(schema.metadata or {})
        fields = {field.name: field.type for field in schema}
    images = [name for name, kind in fields.items() if _is_image(kind)]
    labels = [name for name in fields if features.get(name, {}).get("_type") == "ClassLabel"]
    labels = labels or [name for name in fields if columns.has_role(name, "label") and name not in images]
    label = _choose(shard, "label", [label_column] if label_column else labels, list(fields))
    names = features.get(label, {}).get("names") or ()
    return ImageColumns(image=_choose(shard, "image", images, list(fields)), label=label, names=tuple(names))


def _read_features(metadata: Mapping[bytes, bytes]) -> Mapping[str, Mapping[str, Any]]:
    """Return the features by column; empty where `datasets` did not write the file."""
    try:
        features = json.loads(metadata.get(b"huggingface", b"{}"))["info"]["features"]
    except (ValueError, KeyError, TypeError):
        return {}
    return {name: value if isinstance(value, dict) else {} for name, value in features.items()}


def _is_image(kind: Any) -> bool:
    """Return whether a column's type is a structure of bytes and path, or bytes alone."""
    import pyarrow

    if pyarrow.types.is_struct(kind):
        return int(kind.get_field_index("bytes")) >= 0
    return bool(pyarrow.types.is_binary(kind) or pyarrow.types.is_large_binary(kind))


def _choose(shard: Path, role: str, candidates: Sequence[str], names: Sequence[str]) -> str:
    listed = ", ".join(names)
    if not candidates:
        accepted = "a structure of bytes and path" if role == "image" else "a ClassLabel, or one named label or class"
        raise ToolchainError(f"{shard} has no {role} column; its columns: {listed}; accepted is {accepted}")
    if len(candidates) > 1:
        advice = "give label_column in the domain" if role == "label" else "keep one of them"
        raise ToolchainError(f"{shard} has {len(candidates)} {role} columns: {', '.join(candidates)}; {advice}")
    if candidates[0] not in names:
        raise ToolchainError(
            f"label_column = {candidates[0]!r} in the domain; {registry.suggest(candidates[0], list(names))}"
        )
    return candidates[0]


def _write_images(shards: Sequence[Path], described: ImageColumns, folder: Path) -> list[dict[str, Any]]:
    """Write the images of all shards; return an entry for each, with its file relative to `folder`."""
    entries: list[dict[str, Any]] = []
    taken: set[str] = set()
    with progress.show_bar("write images", 0) as bar:
        for number, shard in enumerate(shards):
            with _open_shard(shard) as opened:
                bar.total += opened.metadata.num_rows
                batches = opened.iter_batches(ROWS_PER_BATCH, columns=[described.image, described.label])
                rows = (row for batch in batches for row in batch.to_pylist())
                for line, row in enumerate(rows, 1):
                    label, split = _read_label(row[described.label], described.names), _split_of_shard(shard)
                    file = _write_image(
                        row[described.image], shard, line, folder / (split or "all") / _to_name(label), taken
                    )
                    name = os.path.relpath(file, folder)
                    entries.append({"shard": number, "row": line, "file": name, "label": label, "split": split})
                    bar.step()
    return entries


def _read_label(value: Any, names: Sequence[str]) -> str:
    """Return the class name of a cell; "" for none, which `datasets` writes as -1."""
    if value is None or value == -1:
        return ""
    if names and isinstance(value, int):
        return names[value] if value < len(names) else str(value)
    return str(value).strip()


def _write_image(cell: Any, shard: Path, line: int, folder: Path, taken: set[str]) -> Path:
    """Write the bytes of an image under its name, and return the file; without bytes, the file that its path names."""
    content, path = (cell.get("bytes"), cell.get("path")) if isinstance(cell, dict) else (cell, None)
    if content is None:
        beside = shard.parent / (path or "")
        if not path or not beside.is_file():
            raise ToolchainError(
                f"{shard} row {line} has no image: no bytes, and no file {path!r}; write the images into the shards"
            )
        return beside
    name = _to_name(Path(str(path or f"{line:06d}").replace("\\", "/")).name)
    if not is_readable(Path(name)):
        name += _suffix_of(content)
    if str(folder / name).casefold() in taken:
        name = f"{Path(name).stem}-{shard.stem}-{line}{Path(name).suffix}"
    taken.add(str(folder / name).casefold())
    with files.open_atomic(folder / name) as file:
        file.write(content)
    return folder / name


def _suffix_of(content: bytes) -> str:
    """Return the suffix of encoded bytes; .png for those that are no image, which decoding reports."""
    try:
        with Image.open(io.BytesIO(content)) as image:
            return f".{(image.format or 'png').lower()}"
    except (OSError, ValueError, Image.DecompressionBombError):
        return ".png"


def _to_name(text: str) -> str:
    """Return a text as the name of a file or folder."""
    return re.sub(r"[^\w.()+ -]+", "_", text).strip(". ") or "_"
