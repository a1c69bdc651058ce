"""Find the columns of a table that hold the file, the label, the split and the group, by the names that people use."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from toolchain.core import registry
from toolchain.core.errors import ToolchainError
from toolchain.data.formats.folders.image_formats import is_image
from toolchain.data.formats.tables.delimited_text import TextTable

NAMES: Mapping[str, tuple[str, ...]] = {  # in any case, with any of "_", "-", " " between the words
    "file": (
        "file", "filename", "filenames", "filepath", "filepaths", "path", "paths", "image", "images", "imagefile", "imagename",
        "imagepath", "imageid", "img", "imgpath", "imgname", "imagefilename", "relpath",
    ),
    "label": (
        "label", "labels", "labelname", "class", "classes", "classname", "classlabel", "category", "categories", "categoryname",
        "target",
    ),
    "split": ("split", "splits", "set", "dataset", "subset", "partition", "fold", "usage"),
    "group": ("group", "groups", "groupid", "patient", "patientid", "subject", "subjectid", "scene", "sceneid", "session",
              "sessionid"),
}  # fmt: skip
ONE_HOT = {"0", "1", "0.0", "1.0"}


@dataclass(frozen=True, kw_only=True)
class Columns:
    """Indices of the columns; None: the table has none."""

    file: int
    label: int | None
    split: int | None
    group: int | None


def has_columns(header: Sequence[str]) -> bool:
    """Return whether a header names a file column and a label column."""
    return all(any(has_role(name, role) for name in header) for role in ("file", "label"))


def find_columns(table: TextTable, label_column: str = "", *, needs_label: bool = True) -> Columns:
    """Find the columns of a table.

    Args:
        table: the table.
        label_column: the label's, where the user names it.
        needs_label: raise if there is none.

    Raises:
        ToolchainError: there is no header, a column is missing, or several columns may be the same.
    """
    if any(is_image(Path(name.replace("\\", "/"))) for name in table.header):
        raise ToolchainError(
            f"{table.path} has no header: line 1 is {', '.join(table.header)}. Write the names of the columns above it, "
            f"such as {'file,label' if len(table.header) < 3 else 'file,label,split'}"
        )
    label = _find_named(table, label_column) if label_column else _find(table, "label")
    file = _find(table, "file")
    if file is None:
        raise ToolchainError(_describe_missing(table, "file"))
    if label is None and needs_label:
        raise ToolchainError(f"{_describe_missing(table, 'label')}{_suggest_one_hot(table)}")
    if not table.rows:
        raise ToolchainError(f"{table.path} has a header, but no rows; give it one row per image")
    return Columns(file=file, label=label, split=_find(table, "split"), group=_find(table, "group"))


def has_role(name: str, role: str) -> bool:
    """Return whether a column's name is one of those that people use for a role."""
    return re.sub(r"[\W_]+", "", name.lower()) in NAMES[role]


def _find(table: TextTable, role: str) -> int | None:
    """Return the index of the only column of a role; None where there is none."""
    indices = [index for index, name in enumerate(table.header) if has_role(name, role)]
    if len(indices) > 1:
        names = ", ".join(repr(table.header[index]) for index in indices)
        advice = " or give label_column in the domain" if role == "label" else ""
        raise ToolchainError(
            f"{table.path} has {len(indices)} columns that may hold the {role}: {names}; rename all but one,{advice}".rstrip(
                ","
            )
        )
    return indices[0] if indices else None


def _find_named(table: TextTable, name: str) -> int:
    """Return the index of the label's column that the user names."""
    if name not in table.header:
        raise ToolchainError(f"label_column = {name!r} in the domain; {registry.suggest(name, list(table.header))}")
    return table.header.index(name)


def _describe_missing(table: TextTable, role: str) -> str:
    columns = ", ".join(table.header)
    return (
        f"{table.path} has no {role} column; its columns: {columns}. Accepted names: {', '.join(NAMES[role][:6])}, ...; "
        f"rename the column that holds the {role}"
    )


def _suggest_one_hot(table: TextTable) -> str:
    """Return what to do with a column of 0 and 1 for each class; "" for any other table."""
    columns = [
        name
        for index, name in enumerate(table.header)
        if table.rows and {row[index] for _, row in table.rows} <= ONE_HOT
    ]
    if len(columns) < 2:
        return ""
    return f". {', '.join(columns)} hold 0 and 1: write the name of the one class into a single column"
