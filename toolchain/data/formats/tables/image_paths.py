"""Find the files that a table of labels names, wherever the table was written: relative, absolute, with back slashes."""

import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath

from toolchain.core.errors import ToolchainError
from toolchain.data.formats.tables.label_rows import MAX_NAMED, LabelRow

IMAGE_FOLDER = "images"  # beside a table, if the files do not lie relative to the table itself
WINDOWS_DRIVE = re.compile(r"[A-Za-z]:/")


def find_files(rows: Sequence[LabelRow], images: str) -> list[Path]:
    """Return the file of each row.

    Args:
        rows: of one table or several; relative names are looked for in the table's folder, then in `images/` in it.
        images: the folder that relative names start from, where the user gives one.

    Raises:
        ToolchainError: the folder or files do not exist, or files may not be read; the first three are named.
    """
    if images and not Path(images).is_dir():
        raise ToolchainError(
            f"images = {images!r}: this folder does not exist; give the folder with the images of the table"
        )
    folders = {table: _choose_folder(table, rows, images) for table in dict.fromkeys(row.table for row in rows)}
    paths = [_join(folders[row.table], row.name) for row in rows]
    missing = [(row, path) for row, path in zip(rows, paths, strict=True) if not path.is_file()]
    if missing:
        raise ToolchainError(_describe_missing(missing, rows, folders))
    locked = [row for row, path in zip(rows, paths, strict=True) if not os.access(path, os.R_OK)]
    if locked:
        names = ", ".join(f"{row.name} (line {row.line})" for row in locked[:MAX_NAMED])
        raise ToolchainError(
            f"{locked[0].table} names {_count(locked)} that cannot be read: {names}; change their permissions, or remove the rows"
        )
    return paths


def _choose_folder(table: Path, rows: Sequence[LabelRow], images: str) -> Path:
    """Return the folder in which most of a table's files lie."""
    if images:
        return Path(images)
    folders = [table.parent, table.parent / IMAGE_FOLDER]
    if not folders[1].is_dir():
        return folders[0]
    names = [row.name for row in rows if row.table == table]
    return max(folders, key=lambda folder: sum(_join(folder, name).is_file() for name in names))  # the first of equals


def _join(folder: Path, name: str) -> Path:
    """Return the path of a name in a folder, without "." and ".."; an absolute name stays one."""
    return Path(os.path.normpath(folder / name.replace("\\", "/").removeprefix("file://")))


def _describe_missing(
    missing: Sequence[tuple[LabelRow, Path]], rows: Sequence[LabelRow], folders: Mapping[Path, Path]
) -> str:
    """Return the error message for the files of the first table that has some which do not exist."""
    table = missing[0][0].table
    names = [f"{row.name} (line {row.line})" for row, _ in missing if row.table == table]
    total = sum(row.table == table for row in rows)
    return (
        f"{table} names {len(names):,} of {total:,} files that do not exist: {', '.join(names[:MAX_NAMED])}. They were looked "
        f"for in {folders[table]}; {_advise(*missing[0])}"
    )


def _advise(row: LabelRow, path: Path) -> str:
    """Return what to do about the first file that does not exist."""
    name = row.name.replace("\\", "/")
    if re.match(r"https?://", name):
        return "download the images first, and name the files"
    if WINDOWS_DRIVE.match(name):
        return f"{row.name} is the path of another computer: write paths relative to the table, such as {PurePosixPath(name).name}"
    if path.is_dir():
        return f"{row.name} is a folder: name the image files in it"
    beside = sorted(path.parent.iterdir()) if path.parent.is_dir() else []
    alike = [other.name for other in beside if other.name.lower() == path.name.lower() or other.stem == path.name]
    if alike:
        return f"did you mean {alike[0]!r}? Names count to the letter, with upper case and suffix"
    return "write paths relative to the table, or give their folder as images = ... in the domain; remove rows without a file"


def _count(rows: Sequence[LabelRow]) -> str:
    return "1 file" if len(rows) == 1 else f"{len(rows):,} files"
