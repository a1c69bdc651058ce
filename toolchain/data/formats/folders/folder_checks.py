"""Check that the class folders of a dataset fit: the same in all splits, those of the domain, and none of them empty."""

from collections.abc import Iterable
from pathlib import Path
from typing import NoReturn

from toolchain.config.dataset import Domain
from toolchain.core.errors import ToolchainError
from toolchain.data.formats.folders.class_names import ClassFolders, to_nfc
from toolchain.data.formats.folders.folder_layout import (
    WHOLE,
    FolderLayout,
)
from toolchain.data.formats.folders.image_formats import count_suffixes
from toolchain.data.formats.folders.split_folders import list_class_folders


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
    if domain.absent_classes == "allow" and domain.classes:
        if unknown := set(map(to_nfc, classes)) - set(map(to_nfc, domain.classes)):
            raise ToolchainError(
                f"{root} has class folders that the model does not know: {_join(unknown)}; the model's classes are "
                f"{', '.join(domain.classes[:6])}{', …' if len(domain.classes) > 6 else ''}"
            )
        return
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
