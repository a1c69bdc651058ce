"""Turn the cells of a table into rows of labels: file, label, split and group."""

from toolchain.core.errors import ToolchainError
from toolchain.data.formats.folders.split_folders import SPLIT_NAMES, Split, split_of_name
from toolchain.data.formats.tables.columns import Columns
from toolchain.data.formats.tables.delimited_text import TextTable
from toolchain.data.formats.tables.label_rows import FOLDER_NAME, LabelRow


def make_rows(table: TextTable, chosen: Columns, split: Split | None) -> list[LabelRow]:
    """Return the rows of a table, whose labels are the names of the images' folders if there is no label column.

    Raises:
        ToolchainError: a row has no file, no label, or a split of another name.
    """
    has_splits = chosen.split is not None and any(cells[chosen.split] for _, cells in table.rows)
    rows = []
    for line, cells in table.rows:
        place = f"{table.path} line {line}"
        if not cells[chosen.file]:
            raise ToolchainError(f"{place} names no file; write its path, or remove the row")
        label = cells[chosen.label] if chosen.label is not None else FOLDER_NAME
        named = _read_split(cells[chosen.split], place) if has_splits and chosen.split is not None else split
        group = cells[chosen.group] if chosen.group is not None else ""
        rows.append(
            LabelRow(table=table.path, line=line, name=cells[chosen.file], label=label, split=named, group=group)
        )
    _check_labels(table, rows)
    return rows


def _check_labels(table: TextTable, rows: list[LabelRow]) -> None:
    """Check that no row is without a label."""
    empty = [row for row in rows if not row.label]
    if empty:
        lines = ", ".join(f"{row.line:,}" for row in empty[:3])
        more = f" and {len(empty) - 3:,} more" if len(empty) > 3 else ""
        raise ToolchainError(
            f"{table.path} has no label in {len(empty):,} of {len(rows):,} rows (lines {lines}{more}); write the name of the "
            "class, or remove the rows"
        )


def _read_split(name: str, place: str) -> Split:
    split = split_of_name(name)
    if split is None:
        accepted = "; ".join("/".join(names) for names in SPLIT_NAMES.values())
        given = f"split {name!r} is not one that is accepted" if name else "no split, while other rows have one"
        raise ToolchainError(
            f"{place}: {given}; accepted are {accepted}, in any case; leave the column out to draw splits"
        )
    return split
