"""Check an image folder before anything slow is imported: that it exists, holds images, and that its classes fit."""

from collections.abc import Iterable
from pathlib import Path
from typing import NoReturn

from toolchain.config.dataset import Domain
from toolchain.core import progress
from toolchain.core.errors import ToolchainError
from toolchain.data.formats.folders.class_names import ClassFolders, to_nfc
from toolchain.data.formats.folders.folder_layout import (
    LINKED_LEVELS,
    WHOLE,
    FolderLayout,
    describe_missing_images,
    read_layout,
)
from toolchain.data.formats.folders.image_formats import count_suffixes, is_readable
from toolchain.data.formats.folders.split_folders import list_class_folders
from toolchain.data.formats.folders.system_files import walk_linked_files

HOW_TO_NAME = "give one with DATA=folder or --data folder"


def check_folder(domain: Domain) -> None:
    """Check a domain's image folder, and log what a user should know about it; a bundled source needs no check.

    Raises:
        ToolchainError: as `locate_folder`, `read_layout` and `list_classes`.
    """
    if domain.source == "folder":
        layout = read_layout(locate_folder(domain), domain.classes)
        list_classes(layout, domain)
        for note in layout.notes:
            progress.log(f"data: {note}")


def check_has_images(domain: Domain) -> None:
    """Check that a domain's image folder exists and holds images, whatever its layout.

    Raises:
        ToolchainError: as `locate_folder`; or no image in the folder can be read.
    """
    if domain.source == "folder":
        folder = locate_folder(domain)
        if not any(is_readable(path) and path.is_file() for path in walk_linked_files(folder, LINKED_LEVELS)):
            raise ToolchainError(describe_missing_images(folder))


def check_data_flag(folder: str) -> None:
    """Check that the folder that `--data` names exists and holds images; "": it is not given.

    Raises:
        ToolchainError: as `check_has_images`.
    """
    if folder:
        check_has_images(Domain(name="--data", path=folder))


def locate_folder(domain: Domain) -> Path:
    """Return the image folder of a domain.

    Raises:
        ToolchainError: none is named, it does not exist, it is a file, or it may not be read.
    """
    if not domain.path:
        raise ToolchainError(f"domain {domain.name!r} has no image folder; {HOW_TO_NAME}")
    folder = Path(domain.path)
    if not folder.exists():
        raise ToolchainError(f"image folder {folder} does not exist; {HOW_TO_NAME}")
    if not folder.is_dir():
        raise ToolchainError(
            f"image folder {folder} is a file, not a folder; unpack it if it is an archive; {HOW_TO_NAME}"
        )
    try:
        next(folder.iterdir(), None)
    except OSError as reason:
        raise ToolchainError(f"image folder {folder} cannot be read: {reason.strerror}; {HOW_TO_NAME}") from reason
    return folder


def list_classes(layout: FolderLayout, domain: Domain) -> tuple[str, ...]:
    """Return the class names in the order of their indices: that of the domain, or sorted.

    Raises:
        ToolchainError: there is no training split, splits or the domain disagree on the classes, a class has no images, or
            there are fewer than two.
    """
    _check_splits(layout)
    for split, by_class in layout.images.items():
        for label, paths in by_class.items():
            if not paths:
                _raise_empty_class(layout, split, label)
    classes = next(iter(layout.images.values()))
    _check_domain_classes(domain, classes, layout.root)
    for label in classes:
        if not label.isprintable() or label != label.encode(errors="replace").decode():
            raise ToolchainError(
                f"class folder {label!r} in {layout.root} has a name that is not plain text; rename it"
            )
    if len(classes) < 2:
        _raise_single_class(layout, next(iter(classes)))
    return domain.classes or tuple(sorted(classes))


def _check_splits(layout: FolderLayout) -> None:
    """Check that there is a training split, and that all splits have the same classes."""
    root, folders = layout.root, {split: folder.name for split, folder in layout.split_folders.items()}
    if folders and "train" not in folders:
        raise ToolchainError(
            f"{root} has {', '.join(folders.values())}/ but no train/; give all of train/ val/ test/, or none of them"
        )
    for split, folder in folders.items():
        if odd := set(layout.images["train"]) ^ set(layout.images[split]):
            raise ToolchainError(
                f"{folders['train']}/ and {folder}/ of {root} have different classes; only in one of them: {_join(odd)}"
            )


def _check_domain_classes(domain: Domain, classes: ClassFolders, root: Path) -> None:
    if domain.classes and (odd := set(map(to_nfc, domain.classes)) ^ set(map(to_nfc, classes))):
        raise ToolchainError(
            f"the classes of domain {domain.name!r} are not the class folders of {root}; only in one of them: {_join(odd)}"
        )


def _raise_empty_class(layout: FolderLayout, split: str, label: str) -> NoReturn:
    """Raise ToolchainError for a class without images that can be read, and name those that cannot."""
    part = layout.root if split == WHOLE else next(f for name, f in layout.split_folders.items() if name == split)
    folder = next(path for path in part.iterdir() if to_nfc(path.name) == to_nfc(label))
    unread = [path for path in layout.unread_images if folder in path.parents]
    if unread:
        raise ToolchainError(
            f"class {label!r} has no images in {folder} that can be read ({count_suffixes(unread)}); convert them to JPEG or PNG"
        )
    raise ToolchainError(f"class {label!r} has no images in {folder}; add images or remove the folder")


def _raise_single_class(layout: FolderLayout, label: str) -> NoReturn:
    """Raise ToolchainError for a single class; where folders of images lie in it, suggest to name it as the dataset."""
    part = next(iter(layout.split_folders.values()), layout.root)
    folder = next(path for path in part.iterdir() if to_nfc(path.name) == to_nfc(label))
    hint = f"; if its folders are the classes, give --data {folder}" if list_class_folders(folder) else ""
    raise ToolchainError(f"{part} has a single class, {label!r}; a classifier needs at least two{hint}")


def _join(names: Iterable[str]) -> str:
    return ", ".join(sorted(names))
