"""Read the names of classes in the order of their indices: a file of the user's, or one that lies beside a table."""

import re
from collections.abc import Sequence
from pathlib import Path

from toolchain.config.labels_file import read_labels
from toolchain.core.errors import ToolchainError

FILE_NAMES = ("classes.txt", "labels.txt", "class_names.txt")  # beside a table of labels
NUMBERED = re.compile(r"(\d+)[\s:,;=]+(.+)")


def find_beside(folder: Path) -> Path | None:
    """Return the file of class names in a folder; None where there is none."""
    return next((folder / name for name in FILE_NAMES if (folder / name).is_file()), None)


def read_names(path: Path) -> tuple[str, ...]:
    """Return the class names of a file: one a line, or with their indices from 0 as `0 cat`; or JSON.

    Raises:
        ToolchainError: as `labels_file.read_labels`; or a name stands twice, or two differ in case only.
    """
    names = read_labels(path)
    _check_repeated(path, names)
    matches = [NUMBERED.fullmatch(name) for name in names]
    if all(match and int(match[1]) == index for index, match in enumerate(matches)):
        names = tuple(match[2] for match in matches if match)
    _check_case(path, names)
    return names


def _check_repeated(path: Path, names: Sequence[str]) -> None:
    """Check that no name stands twice: `read_labels` tells such names of a model's outputs apart by their indices."""
    lines: dict[str, list[int]] = {}
    for index, name in enumerate(names):
        if name.endswith(f" ({index})"):
            lines.setdefault(name.removesuffix(f" ({index})"), []).append(index + 1)
    for name, places in lines.items():
        if len(places) > 1:
            raise ToolchainError(
                f"labels file {path} has {name!r} in lines {' and '.join(map(str, places))}; images with that label could "
                "belong to either, so rename one"
            )


def _check_case(path: Path, names: Sequence[str]) -> None:
    """Check that no two names differ in case only, or are the same behind their numbers."""
    lines: dict[str, int] = {}
    for line, name in enumerate(names, 1):
        if first := lines.get(name.casefold()):
            raise ToolchainError(
                f"labels file {path} has names that differ in case only: {names[first - 1]!r} (line {first}) and {name!r} "
                f"(line {line}); rename one, if they are two classes"
            )
        lines[name.casefold()] = line
