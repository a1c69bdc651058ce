"""Hugging Face `imagefolder`: `metadata.csv` or `metadata.jsonl` beside the images, in the folder or in each split's.

Without a label column the folders of the images are the labels, as `datasets` has it.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from toolchain.config.dataset import Domain
from toolchain.core.errors import ToolchainError
from toolchain.data.formats.folders.split_folders import Split, split_of_name
from toolchain.data.formats.folders.system_files import list_folders
from toolchain.data.formats.tables import columns, label_rows_of_table, list_rows, text_file
from toolchain.data.formats.tables.delimited_text import TextTable, read_table
from toolchain.data.formats.tables.list_rows import LabelTable
from toolchain.data.labelled_files import LabelledFiles

ORDER = 20
EXPECTED = "a Hugging Face imagefolder with metadata.csv or metadata.jsonl"
FILE_NAMES = ("metadata.csv", "metadata.jsonl")


def recognise(path: Path) -> bool:
    """Return whether metadata lies in a folder, or in those of its splits."""
    return path.is_dir() and any(_list_metadata(path))


def read(path: Path, domain: Domain, cache: Path) -> LabelledFiles:
    """List the images that the metadata names.

    Raises:
        ToolchainError: metadata is not valid, or as `make_rows` and `list_rows`.
    """
    rows, files = [], []
    for split, file in _list_metadata(path):
        table = _read_jsonl(file) if file.suffix == ".jsonl" else read_table(file)
        chosen = columns.find_columns(table, domain.label_column, needs_label=False)
        rows += label_rows_of_table.make_rows(table, chosen, split)
        files.append(file)
    has_labels = chosen.label is not None
    labels = f"label = {table.header[chosen.label]}" if chosen.label is not None else "labels are the images' folders"
    try:
        title = f"a Hugging Face imagefolder ({files[0].name}, {labels})"
        return list_rows.list_rows(LabelTable(path=path, title=title, rows=rows, tables=tuple(files)), domain)
    except ToolchainError as reason:
        hint = "" if has_labels else f"; {files[0].name} has no label column ({', '.join(table.header)}): add one"
        raise ToolchainError(f"{reason}{hint}") from reason


def _list_metadata(folder: Path) -> Iterator[tuple[Split | None, Path]]:
    """Yield the metadata in the folders of splits, otherwise that in the folder itself."""
    places = [(split, part) for part in list_folders(folder) if (split := split_of_name(part.name))]
    in_splits = [(split, part / name) for split, part in places for name in FILE_NAMES if (part / name).is_file()]
    yield from in_splits or [(None, folder / name) for name in FILE_NAMES if (folder / name).is_file()][:1]


def _read_jsonl(path: Path) -> TextTable:
    """Read a JSON object per line as the row of a table.

    Raises:
        ToolchainError: a line is not a JSON object.
    """
    objects: list[tuple[int, dict[str, Any]]] = []
    for line, text in enumerate(text_file.read_text(path).splitlines(), 1):
        if not text.strip():
            continue
        try:
            value = json.loads(text)
        except (ValueError, RecursionError) as reason:
            raise ToolchainError(
                f"{path} line {line} is not valid JSON: {reason}; write one object per image and line"
            ) from reason
        if not isinstance(value, dict):
            raise ToolchainError(f"{path} line {line} is no JSON object; write one object per image and line")
        objects.append((line, value))
    header = tuple(dict.fromkeys(key for _, value in objects for key in value))
    return TextTable(
        path=path,
        header=header,
        rows=tuple((line, tuple(_to_cell(value.get(key)) for key in header)) for line, value in objects),
    )


def _to_cell(value: Any) -> str:
    if value is None:
        return ""
    return value.strip() if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
