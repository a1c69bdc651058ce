"""Class folders: `<folder>/<class>/<image>` or `<folder>/<split>/<class>/<image>`.

`folders/folder_layout` says which layouts are read. A folder that training rejects is listed as it lies there.
"""

from pathlib import Path

from toolchain.config.dataset import Domain
from toolchain.core.errors import ToolchainError
from toolchain.data.formats.folders import folder_checks, folder_layout
from toolchain.data.formats.folders.folder_layout import WHOLE, FolderLayout
from toolchain.data.formats.folders.split_folders import SPLITS
from toolchain.data.formats.folders.system_files import list_folders
from toolchain.data.labelled_files import LabelledFiles

ORDER = 90  # any folder may be one, so the other formats are asked first
EXPECTED = "a folder with <class>/<image>, or with train/, val/ and test/ of those"
TITLE = "class folders"
TABLE_SUFFIXES = {".csv", ".tsv"}


def recognise(path: Path) -> bool:
    """Return whether the path is a folder."""
    return path.is_dir()


def read(path: Path, domain: Domain, cache: Path) -> LabelledFiles:
    """List the images in class folders.

    Raises:
        ToolchainError: there are no images in class folders.
    """
    layout, problem, classes = None, "", tuple[str, ...]()
    try:
        layout = folder_layout.read_layout(path, domain.classes)
        classes = folder_checks.list_classes(layout, domain)
    except ToolchainError as reason:
        problem = f"{reason}{_suggest_table(path)}"
    labelled = _list_layout(layout, classes, problem) if layout else _list_plain_names(path, problem)
    if not labelled.file_count:
        raise ToolchainError(problem)
    return labelled


def _list_layout(layout: FolderLayout, classes: tuple[str, ...], problem: str) -> LabelledFiles:
    names = sorted({name for by_class in layout.images.values() for name in by_class})
    return LabelledFiles(
        path=layout.folder,
        root=layout.root,
        title=TITLE,
        classes=classes or tuple(names),
        images=layout.images,
        notes=layout.layout_notes,
        problem=problem,
    )


def _list_plain_names(path: Path, problem: str) -> LabelledFiles:
    """List the images of a folder without a valid layout: by the plain names of splits, or as classes."""
    folders = {split: path / split for split in SPLITS if (path / split).is_dir()}
    given_splits: dict[str, Path] = {split: folder for split, folder in folders.items() if list_folders(folder)}
    parts = given_splits or {WHOLE: path}
    images = {name: folder_layout.scan_class_folders(part) for name, part in parts.items()}
    names = sorted({name for by_class in images.values() for name in by_class})
    return LabelledFiles(
        path=path, root=path, title=TITLE, classes=tuple(names), images=images, is_guess=True, problem=problem
    )


def _suggest_table(folder: Path) -> str:
    """Return the advice to name the table of labels that lies in a folder; "" where there is none."""
    tables = sorted(file for file in folder.iterdir() if file.suffix.lower() in TABLE_SUFFIXES and file.is_file())
    return f"; if {tables[0].name} holds the labels, give --data {tables[0]}" if tables else ""
