"""Turn the rows of a table of labels into labelled files: find the files, check the labels, put them into order.

Images are sorted by class and path as those in class folders are, so the order of rows decides nothing, and a table that
lies in a folder of class folders and names all of its images is the same dataset as the folder.
"""

import dataclasses
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from toolchain.config.dataset import Domain
from toolchain.core.errors import ToolchainError
from toolchain.data.formats.folders.class_names import to_nfc
from toolchain.data.formats.folders.folder_layout import WHOLE
from toolchain.data.formats.folders.image_formats import is_readable
from toolchain.data.formats.folders.split_folders import SPLITS
from toolchain.data.formats.tables import class_list, image_paths, label_checks
from toolchain.data.formats.tables.label_rows import FOLDER_NAME, MAX_NAMED, LabelRow
from toolchain.data.labelled_files import LabelledFiles


@dataclass(frozen=True, kw_only=True)
class LabelTable:
    """What a format read from its files."""

    path: Path  # as the user named it
    title: str
    rows: Sequence[LabelRow]
    tables: tuple[Path, ...]
    names: tuple[str, ...] = ()  # class names in the order of their indices, where the table itself has them


def list_rows(table: LabelTable, domain: Domain) -> LabelledFiles:
    """List the labelled files of a table.

    Args:
        table: its rows.
        domain: `images`, and `classes` where it lists them.

    Raises:
        ToolchainError: a file does not exist or may not be read, an image has two labels, a label is not accepted, the
            classes are not those of the domain, or no image can be read.
    """
    paths = image_paths.find_files(table.rows, domain.images)
    rows = [
        row if row.label != FOLDER_NAME else dataclasses.replace(row, label=_name_folder(row, path))
        for row, path in _pair(table, paths)
    ]
    names, source, class_file = _choose_names(table, domain)
    rows = label_checks.name_indices(label_checks.to_nfc_labels(rows), names, source)
    label_checks.check_labels(rows, names)
    by_path, repeated = _merge_repeated(rows, paths)
    readable = {path: row for path, row in by_path.items() if is_readable(path) or not path.suffix}
    if not readable:
        raise ToolchainError(f"{table.path} names no image that can be read; convert them to JPEG or PNG")
    classes, unused = _order_classes(readable, names, domain, table.path)
    return LabelledFiles(
        path=table.path,
        root=_find_root(list(readable)),
        title=table.title,
        classes=classes,
        images=_sort_by_class(readable, classes, table.path),
        groups={path: row.group for path, row in readable.items() if row.group},
        tables=(*table.tables, *([class_file] if class_file else [])),
        unread_images=tuple(sorted(set(by_path) - set(readable))),
        notes=tuple(filter(None, (repeated, unused, _describe_divided_groups(readable)))),
    )


def _pair(table: LabelTable, paths: Sequence[Path]) -> Sequence[tuple[LabelRow, Path]]:
    return list(zip(table.rows, paths, strict=True))


def _name_folder(row: LabelRow, path: Path) -> str:
    """Return the name of an image's folder as its label; "" where the table itself names no folder."""
    return path.parent.name if "/" in row.name.replace("\\", "/") else ""


def _choose_names(table: LabelTable, domain: Domain) -> tuple[tuple[str, ...], str, Path | None]:
    """Return the class names by index, what gives them, and the file beside the table that was read for them."""
    if domain.classes:
        return tuple(map(to_nfc, domain.classes)), domain.labels or f"the classes of domain {domain.name!r}", None
    if table.names:
        return table.names, f"the class names in {table.tables[0].name}", None
    beside = class_list.find_beside(table.path if table.path.is_dir() else table.path.parent)
    if beside is None or beside in table.tables:
        return (), "", None
    return class_list.read_names(beside), beside.name, beside


def _merge_repeated(rows: Sequence[LabelRow], paths: Sequence[Path]) -> tuple[dict[Path, LabelRow], str]:
    """Return one row for each file, and a note where files are named twice.

    Raises:
        ToolchainError: the rows of one file contradict each other.
    """
    by_path: dict[Path, LabelRow] = {}
    repeated = []
    for row, path in zip(rows, paths, strict=True):
        first = by_path.setdefault(path, row)
        if first is row:
            continue
        repeated.append(row)
        for title, old, new in (
            ("labels", first.label, row.label), ("splits", first.split, row.split), ("groups", first.group, row.group),
        ):  # fmt: skip
            if old != new:
                raise ToolchainError(
                    f"{row.name} has two {title}: {old!r} ({first.place}) and {new!r} ({row.place}); remove one of the rows"
                )
    if not repeated:
        return by_path, ""
    named = ", ".join(f"{row.name} (line {row.line})" for row in repeated[:MAX_NAMED])
    count = "1 row repeats" if len(repeated) == 1 else f"{len(repeated):,} rows repeat"
    return by_path, f"{count} a file with the same label and {'is' if len(repeated) == 1 else 'are'} read once: {named}"


def _order_classes(
    rows: Mapping[Path, LabelRow], names: Sequence[str], domain: Domain, path: Path
) -> tuple[tuple[str, ...], str]:
    """Return the classes in the order of their indices, and a note on names without images.

    Raises:
        ToolchainError: the domain lists a class without images, or there is a single class.
    """
    present = {row.label for row in rows.values()}
    unused = [name for name in names if name not in present]
    if unused and domain.classes:
        source = domain.labels or f"domain {domain.name!r}"
        raise ToolchainError(
            f"{path} has no images of {len(unused):,} classes of {source}: {', '.join(unused[:6])}; add images, or remove the names"
        )
    if len(present) < 2:
        raise ToolchainError(f"{path} has a single class, {min(present)!r}; a classifier needs at least two")
    classes = tuple(name for name in names if name in present) or tuple(sorted(present))
    note = f"{len(unused):,} class names without images are left out: {', '.join(unused[:6])}" if unused else ""
    return (domain.classes or classes), note


def _sort_by_class(
    rows: Mapping[Path, LabelRow], classes: Sequence[str], path: Path
) -> dict[str, dict[str, list[Path]]]:
    """Return the files by split and class, sorted."""
    given = {row.split for row in rows.values()}
    if None not in given and "train" not in given:
        raise ToolchainError(
            f"{path} has images for {', '.join(str(split) for split in SPLITS if split in given)}, but none for train; give "
            "all of train, val and test, or none of them"
        )
    parts: list[str] = [split for split in SPLITS if split in given] or [WHOLE]
    images: dict[str, dict[str, list[Path]]] = {part: {name: [] for name in classes} for part in parts}
    spelled = {to_nfc(name): name for name in classes}
    for file in sorted(rows):
        row = rows[file]
        images[row.split or WHOLE][spelled[row.label]].append(file)
    return images


def _find_root(paths: Sequence[Path]) -> Path:
    """Return the innermost folder around all files: for those of class folders, the folder of the classes or splits."""
    are_alike = len({path.is_absolute() for path in paths}) == 1
    return Path(os.path.commonpath([path.parent if are_alike else path.parent.absolute() for path in paths]))


def _describe_divided_groups(rows: Mapping[Path, LabelRow]) -> str:
    """Return which groups the table itself puts into several splits; "" for none."""
    splits: dict[str, set[str]] = {}
    for row in rows.values():
        if row.group and row.split:
            splits.setdefault(row.group, set()).add(row.split)
    divided = sorted(name for name, places in splits.items() if len(places) > 1)
    if not divided:
        return ""
    count = "1 group lies" if len(divided) == 1 else f"{len(divided):,} groups lie"
    return f"{count} in more than one split, as the split column says: {', '.join(divided[:MAX_NAMED])}"
