"""CSV: one row per image with its file and label, and its split and group where there are such columns.

A folder with `train.csv`, and `val.csv` and `test.csv` where they exist, is read as one dataset.
"""

from pathlib import Path

from toolchain.config.dataset import Domain
from toolchain.data.formats.folders.split_folders import Split, split_of_name
from toolchain.data.formats.tables import columns, label_rows_of_table, list_rows, text_file
from toolchain.data.formats.tables.columns import Columns
from toolchain.data.formats.tables.delimited_text import TextTable, read_table, split_header
from toolchain.data.formats.tables.label_rows import LabelRow
from toolchain.data.formats.tables.list_rows import LabelTable
from toolchain.data.labelled_files import LabelledFiles

ORDER = 30
EXPECTED = "a CSV file (.csv, .tsv) with the columns file,label[,split][,group]"
SUFFIXES = {".csv", ".tsv"}


def recognise(path: Path) -> bool:
    """Return whether the path is a CSV file, a text file with a header, or a folder of one CSV file a split."""
    if path.is_dir():
        return any(split == "train" and _has_header(file) for split, file in _list_split_files(path))
    return path.suffix.lower() in SUFFIXES or (path.suffix.lower() == ".txt" and _has_header(path))


def read(path: Path, domain: Domain, cache: Path) -> LabelledFiles:
    """List the images that CSV files name.

    Raises:
        ToolchainError: as `read_rows` and `list_rows`.
    """
    tables = _list_split_files(path) if path.is_dir() else [(None, path)]
    rows, titles = [], []
    for split, file in tables:
        table_rows, title = read_rows(file, domain.label_column, split)
        rows += table_rows
        titles.append(title)
    title = (
        titles[0] if len(tables) == 1 else f"{', '.join(file.name for _, file in tables)}, each a split, {titles[0]}"
    )
    table = LabelTable(path=path, title=title, rows=rows, tables=tuple(file for _, file in tables))
    return list_rows.list_rows(table, domain)


def read_rows(path: Path, label_column: str, split: Split | None) -> tuple[list[LabelRow], str]:
    """Read the rows of one CSV file.

    Args:
        path: the file.
        label_column: the label's column, where the user names it.
        split: of all rows; None: the file has a column for it, or the splits are drawn.

    Returns:
        The rows, and what the file is read as.

    Raises:
        ToolchainError: no header, a column that is missing, a cell that is empty, or a split of another name.
    """
    table = read_table(path)
    chosen = columns.find_columns(table, label_column)
    return label_rows_of_table.make_rows(table, chosen, split), f"CSV ({_describe_columns(table, chosen)})"


def _has_header(path: Path) -> bool:
    return columns.has_columns(split_header(text_file.peek_first_line(path)))


def _list_split_files(folder: Path) -> list[tuple[Split | None, Path]]:
    """List the CSV files of a folder that are named as splits."""
    files = sorted(file for file in folder.iterdir() if file.suffix.lower() in SUFFIXES and file.is_file())
    return [(split, file) for file in files if (split := split_of_name(file.stem))]


def _describe_columns(table: TextTable, chosen: Columns) -> str:
    """Return which column is read as what: "file = filename, label = class"."""
    indices = {"file": chosen.file, "label": chosen.label, "split": chosen.split, "group": chosen.group}
    return ", ".join(f"{role} = {table.header[index]}" for role, index in indices.items() if index is not None)
