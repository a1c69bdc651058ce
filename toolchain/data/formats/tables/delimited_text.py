"""Read rows of delimited text: commas, semicolons or tabs, with quoted fields, and a header in the first line."""

import csv
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from toolchain.core.errors import ToolchainError
from toolchain.data.formats.tables.text_file import read_text

DELIMITERS = {",": "comma", ";": "semicolon", "\t": "tab"}


@dataclass(frozen=True, kw_only=True)
class TextTable:
    """The rows of a table; cells are text without blanks around it."""

    path: Path
    header: tuple[str, ...]
    rows: tuple[tuple[int, tuple[str, ...]], ...]  # line number and a cell for each column


def split_header(line: str) -> tuple[str, ...]:
    """Return the column names of a header, split at the delimiter that gives the most."""
    return max((_parse_line(line, delimiter) for delimiter in DELIMITERS), key=len)


def read_table(path: Path) -> TextTable:
    """Read a table.

    Raises:
        ToolchainError: it is empty or not text, quotes do not match, or a row has more cells than the header.
    """
    text = read_text(path)
    first = next(line for line in text.splitlines() if line.strip())
    delimiter = max(DELIMITERS, key=lambda each: len(_parse_line(first, each)))
    lines = _parse(path, text, delimiter)
    header = lines[0][1]
    while header and not header[-1]:
        header = header[:-1]
    rows = tuple((line, _fit(path, line, cells, header, delimiter)) for line, cells in lines[1:])
    return TextTable(path=path, header=header, rows=rows)


def _parse_line(line: str, delimiter: str) -> tuple[str, ...]:
    return tuple(cell.strip() for cell in next(csv.reader([line], delimiter=delimiter, skipinitialspace=True), ()))


def _parse(path: Path, text: str, delimiter: str) -> list[tuple[int, tuple[str, ...]]]:
    """Return line numbers and cells of all rows that are not empty."""
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, skipinitialspace=True, strict=True)
    rows, start = [], 1
    try:
        for cells in reader:
            if any(cell.strip() for cell in cells):
                rows.append((start, tuple(cell.strip() for cell in cells)))
            start = reader.line_num + 1
    except csv.Error as reason:
        raise ToolchainError(
            f"{path} line {start}: a field's quotes do not match ({reason}); write a quote inside of a quoted field twice"
        ) from reason
    return rows


def _fit(path: Path, line: int, cells: Sequence[str], header: Sequence[str], delimiter: str) -> tuple[str, ...]:
    """Return a cell for each column; missing ones are empty."""
    if any(cells[len(header) :]):
        raise ToolchainError(
            f"{path} line {line} has {len(cells)} fields, but the header has {len(header)} ({', '.join(header)}); put quotes "
            f"around a field with a {DELIMITERS[delimiter]} in it"
        )
    return (*cells[: len(header)], *[""] * (len(header) - len(cells)))
