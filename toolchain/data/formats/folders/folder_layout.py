"""Read how an image folder is laid out: where its splits and classes are, and what in it is not used.

`<folder>/<class>/<image>` and `<folder>/<split>/<class>/<image>` are read, and one outer folder around either. Nothing is
decoded and no slow library is imported, so a wrong folder is reported at once.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from toolchain.core.errors import ToolchainError
from toolchain.data.formats.folders.class_names import ClassFolders, merge_spellings
from toolchain.data.formats.folders.image_formats import count_suffixes, is_image, is_readable
from toolchain.data.formats.folders.split_folders import (
    Split,
    describe_split_names,
    find_split_folders,
    has_images_directly,
    list_class_folders,
    split_of_name,
)
from toolchain.data.formats.folders.system_files import (
    describe_system_files,
    list_folders,
    list_system_files,
    walk_files,
    walk_linked_files,
)

WHOLE = "all"  # key of the images of a folder without splits
LINKED_LEVELS = 3  # the outer folder, the splits and the classes may be links to folders


@dataclass(frozen=True, kw_only=True)
class FolderLayout:
    """The splits, classes and images of a folder."""

    folder: Path  # as the user named it
    root: Path  # that holds the splits or the classes: `folder`, or the one outer folder in it
    split_folders: Mapping[Split, Path]  # training first; empty: the classes lie in `root`
    images: Mapping[str, ClassFolders]  # readable images by split (or WHOLE) and class, sorted
    layout_notes: tuple[str, ...]  # what is taken as what, a sentence each

    @property
    def system_files(self) -> tuple[Path, ...]:
        """The system files at any depth, relative to `folder`; walks it."""
        return list_system_files(self.folder)

    @property
    def unread_images(self) -> tuple[Path, ...]:
        """The images in formats that are not read; walks the folder."""
        return list_unread_images(self.folder)

    @property
    def notes(self) -> tuple[str, ...]:
        """Everything that a user should know about the folder, a sentence each."""
        system_files, unread = describe_system_files(self.system_files), describe_unread_images(self.unread_images)
        return (*self.layout_notes, *(note for note in (system_files, unread) if note))


def read_layout(folder: Path, classes: Sequence[str] = ()) -> FolderLayout:
    """Read the layout of an image folder.

    Args:
        folder: as the user named it.
        classes: class names of the domain, where it lists them.

    Raises:
        ToolchainError: no image can be read, a folder only looks like a split, or two class names look the same.
    """
    root = enter_outer_folder(folder)
    split_folders = find_split_folders(root, classes)
    parts = {**split_folders} if split_folders else {WHOLE: root}
    images, spelling_notes = merge_spellings({name: scan_class_folders(part) for name, part in parts.items()}, root)
    if not any(paths for by_class in images.values() for paths in by_class.values()):
        raise ToolchainError(describe_missing_images(folder))
    notes = (
        _describe_outer_folder(folder, root, split_folders),
        describe_split_names(split_folders),
        *spelling_notes,
        _describe_unused_folders(root, split_folders),
    )
    return FolderLayout(
        folder=folder,
        root=root,
        split_folders=split_folders,
        images=images,
        layout_notes=tuple(note.encode(errors="backslashreplace").decode() for note in notes if note),
    )


def enter_outer_folder(folder: Path) -> Path:
    """Return the one outer folder around the splits or classes of a dataset; `folder` itself where there is none."""
    folders = list_folders(folder)
    if len(folders) != 1:
        return folder
    (outer,) = folders
    inner = list_class_folders(outer)
    if split_of_name(outer.name):  # a split or a class, unless splits lie in it
        splits = [split_of_name(path.name) for path in inner if list_class_folders(path)]
        return outer if "train" in splits and None not in splits and len(splits) == len(inner) else folder
    return outer if inner and not has_images_directly(outer) else folder


def scan_class_folders(folder: Path) -> dict[str, list[Path]]:
    """List the readable images below each class folder, sorted; system files and folders are left out."""
    return {
        class_folder.name: sorted(path for path in walk_files(class_folder) if is_readable(path) and path.is_file())
        for class_folder in list_folders(folder)
    }


def list_unread_images(folder: Path) -> tuple[Path, ...]:
    """List the images at any depth whose format is not read, sorted."""
    paths = walk_linked_files(folder, LINKED_LEVELS)
    return tuple(sorted(path for path in paths if is_image(path) and not is_readable(path)))


def describe_unread_images(images: Sequence[Path]) -> str:
    """Return how many images are not read, by suffix, and what to do; "" for none."""
    if not images:
        return ""
    verb = "image is not read and will not be used" if len(images) == 1 else "images are not read and will not be used"
    return f"{len(images):,} {verb} ({count_suffixes(images)}): convert them to JPEG or PNG"


def describe_missing_images(folder: Path) -> str:
    """Return the error message for a folder without images in class folders: what is in it, and what is expected."""
    expected = f"expected are {folder}/<class>/<image> or {folder}/train/<class>/<image>"
    if unread := list_unread_images(folder):
        return f"{folder} has no images that can be read: {count_suffixes(unread)} in it; convert them to JPEG or PNG; {expected}"
    if not list_folders(folder):
        direct = sum(is_readable(path) and path.is_file() for path in walk_files(folder))
        content = (
            f": {direct:,} images lie directly in it; move those of each class to a folder of its name"
            if direct
            else ""
        )
        return f"{folder} has no class folders{content}; {expected}"
    return f"{folder} has no images in class folders; {expected}"


def _describe_outer_folder(folder: Path, root: Path, split_folders: Mapping[Split, Path]) -> str:
    if root == folder:
        return ""
    return f"the one folder in {folder}, {root.name}/, is read as the folder of the {'splits' if split_folders else 'classes'}"


def _describe_unused_folders(root: Path, split_folders: Mapping[Split, Path]) -> str:
    """Return which image folders are not used as splits; "" for none."""
    if split_folders:
        taken = set(split_folders.values())
        unused = [f"{folder.name}/" for folder in list_class_folders(root) if folder not in taken]
        return f"{', '.join(unused)} beside the splits is not used" if unused else ""
    inner = {path.name for folder in list_folders(root) for path in list_folders(folder)}
    names = sorted(f"{name}/" for name in inner if split_of_name(name))
    return f"{', '.join(names)} inside of class folders is not read as a split" if names else ""
