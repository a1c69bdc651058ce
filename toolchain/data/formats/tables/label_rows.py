"""A row of a table of labels, as every table format gives it, and how messages name rows."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from toolchain.data.formats.folders.split_folders import Split

MAX_NAMED = 3
FOLDER_NAME = "\0"  # in place of a label


@dataclass(frozen=True, kw_only=True)
class LabelRow:
    """One image with its label."""

    table: Path
    line: int
    name: str  # of the image file, as the table writes it
    label: str  # "": none, which is an error; FOLDER_NAME: that of the folder that the image lies in
    split: Split | None = None  # None: the table does not say
    group: str = ""

    @property
    def place(self) -> str:
        """Return the table and line: "images.csv line 12"."""
        return f"{self.table.name} line {self.line}"


def list_places(rows: Sequence[LabelRow]) -> str:
    """Return the table and the first lines: "images.csv lines 3, 7, 9 and 12 more"."""
    lines = [f"{row.line:,}" for row in rows[:MAX_NAMED]]
    more = f" and {len(rows) - MAX_NAMED:,} more" if len(rows) > MAX_NAMED else ""
    return f"{rows[0].table.name} line{'s' if len(rows) > 1 else ''} {', '.join(lines)}{more}"
