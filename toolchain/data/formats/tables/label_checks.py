"""Check the labels of a table before any image is read: empty ones, several in one cell, numbers that are no classes."""

import dataclasses
import re
from collections import Counter
from collections.abc import Sequence

from toolchain.core import registry
from toolchain.core.errors import ToolchainError
from toolchain.data.formats.folders.class_names import to_nfc
from toolchain.data.formats.tables.label_rows import LabelRow, list_places

INDEX = re.compile(r"-?\d+(\.0+)?")  # programs that read a table with gaps write 3 as 3.0
SEPARATORS = "|;,"
MIN_ROWS_PER_LABEL = 2  # on average; every class needs three images anyway


def check_labels(rows: Sequence[LabelRow], names: Sequence[str]) -> None:
    """Check the labels of a table.

    Args:
        rows: all rows; labels in Unicode form NFC.
        names: class names in the order of their indices, where a file gives them; a name in it is always accepted.

    Raises:
        ToolchainError: labels are empty, hold several classes, are not plain text, are as many as there are rows, or differ
            in case only.
    """
    empty = [row for row in rows if not row.label]
    if empty:
        raise ToolchainError(f"no label in {list_places(empty)}; write the name of the class, or remove the rows")
    known = set(names)
    unknown = [row for row in rows if row.label not in known]
    _check_single(rows, unknown)
    odd = [
        row
        for row in unknown
        if not row.label.isprintable() or row.label != row.label.encode(errors="replace").decode()
    ]
    if odd:
        raise ToolchainError(f"{odd[0].place}: label {odd[0].label!r} is not plain text; rename the class")
    if not names:
        _check_repeated(rows)
    _check_case(rows)


def _check_single(rows: Sequence[LabelRow], unknown: Sequence[LabelRow]) -> None:
    """Check that no cell holds several classes."""
    labels = {row.label for row in rows}
    for row in unknown:
        parts = [part.strip() for part in re.split(f"[{re.escape(SEPARATORS)}]", row.label)]
        is_list = len(parts) > 1 and ("|" in row.label or labels.issuperset(parts) or row.label[0] in "[({")
        if is_list:
            raise ToolchainError(
                f"{row.place}: label {row.label!r} holds several classes; one class per image is accepted, so keep one, or "
                "remove the row"
            )


def _check_repeated(rows: Sequence[LabelRow]) -> None:
    """Check that the labels are classes: names that repeat."""
    labels = Counter(row.label for row in rows)
    if len(rows) < 4 or len(rows) >= MIN_ROWS_PER_LABEL * len(labels):
        return
    is_numeric = all(re.fullmatch(r"[+-]?\d+([.,]\d+)?([eE][+-]?\d+)?", label) for label in labels)
    problem = "are numbers to predict (regression), not classes" if is_numeric else "are no classes, which repeat"
    examples = ", ".join(repr(row.label) for row in rows[:3])
    raise ToolchainError(
        f"{rows[0].table} has {len(labels):,} different labels in {len(rows):,} rows ({examples}, ...): these {problem}; "
        f"accepted is one class name per image, {'such as a range of values, ' if is_numeric else ''}each on several rows"
    )


def _check_case(rows: Sequence[LabelRow]) -> None:
    """Check that no two labels differ in case only."""
    first: dict[str, LabelRow] = {}
    for row in rows:
        other = first.setdefault(row.label.casefold(), row)
        if other.label != row.label:
            raise ToolchainError(
                f"labels that differ in case only: {other.label!r} ({other.place}) and {row.label!r} ({row.place}); write the "
                "name of one class the same way on all rows, or rename one if they are two classes"
            )


def name_indices(rows: Sequence[LabelRow], names: Sequence[str], source: str) -> list[LabelRow]:
    """Return the rows with the class name in place of its index, where the labels are indices into `names`.

    Args:
        rows: all rows.
        names: class names in the order of their indices; empty: the labels are names.
        source: of the names, for messages.

    Raises:
        ToolchainError: an index is not that of a name, or a label is not among the names.
    """
    known = set(names)
    if not names or all(row.label in known for row in rows):
        return list(rows)
    if all(INDEX.fullmatch(row.label) for row in rows if row.label):
        return [dataclasses.replace(row, label=_name_index(row, names, source)) if row.label else row for row in rows]
    for row in rows:
        if row.label and row.label not in known:
            hint = registry.suggest(row.label, list(names[:20]))
            more = f" and {len(names) - 20:,} more" if len(names) > 20 else ""
            raise ToolchainError(f"{row.place}: label {row.label!r} is not in {source}; {hint}{more}")
    return list(rows)


def _name_index(row: LabelRow, names: Sequence[str], source: str) -> str:
    index = int(float(row.label))
    if not 0 <= index < len(names):
        raise ToolchainError(
            f"{row.place}: label {row.label} is no index into {source}, which has {len(names)} names (indices 0 to "
            f"{len(names) - 1}); add the names, or count labels from 0"
        )
    return names[index]


def to_nfc_labels(rows: Sequence[LabelRow]) -> list[LabelRow]:
    """Return the rows with labels in Unicode form NFC, since a Mac writes é in another form."""
    return [row if (label := to_nfc(row.label)) == row.label else dataclasses.replace(row, label=label) for row in rows]
