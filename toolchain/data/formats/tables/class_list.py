"""Read the names of classes in the order of their indices from a text file, one name a line."""

import re
from collections.abc import Sequence
from pathlib import Path

from toolchain.core.errors import ToolchainError
from toolchain.data.formats.folders.class_names import to_nfc
from toolchain.data.formats.tables.text_file import read_text

FILE_NAMES = ("classes.txt", "labels.txt", "class_names.txt")  # beside a table of labels
NUMBERED = re.compile(r"(\d+)[\s:,;=]+(.+)")


def find_beside(folder: Path) -> Path | None:
    """Return the file of class names in a folder; None where there is none."""
    return next((folder / name for name in FILE_NAMES if (folder / name).is_file()), None)


def read_names(path: Path) -> tuple[str, ...]:
    """Return the class names of a file: one a line, or with their indices from 0 as `0 cat`.

    Raises:
        ToolchainError: it does not exist, is empty, or names one class, a class twice, or two that differ in case only.
    """
    if not path.is_file():
        raise ToolchainError(f"the file of class names {path} does not exist; write one name a line")
    lines = [to_nfc(line.strip()) for line in read_text(path).splitlines()]
    while not lines[-1]:
        lines.pop()
    if "" in lines:
        raise ToolchainError(
            f"{path} line {lines.index('') + 1} is empty, which would shift all indices after it; write one name a line"
        )
    matches = [NUMBERED.fullmatch(line) for line in lines]
    if all(match and int(match[1]) == index for index, match in enumerate(matches)):
        lines = [match[2] for match in matches if match]
    _check_names(path, lines)
    return tuple(lines)


def _check_names(path: Path, names: Sequence[str]) -> None:
    """Check that there are at least two names, and none of them twice."""
    lines: dict[str, int] = {}
    for line, name in enumerate(names, 1):
        if first := lines.get(name.casefold()):
            twin = names[first - 1]
            problem = (
                f"names {name!r} twice" if name == twin else f"has names that differ in case only: {twin!r}, {name!r}"
            )
            raise ToolchainError(f"{path} {problem} (lines {first} and {line}); keep one of them")
        lines[name.casefold()] = line
    if len(names) < 2:
        raise ToolchainError(
            f"{path} has a single class, {names[0]!r}; a classifier needs at least two, one name a line"
        )
