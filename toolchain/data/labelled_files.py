"""The images of a dataset with their classes, as every format lists them; nothing is decoded yet."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from toolchain.data.formats.folders.class_names import ClassFolders


@dataclass(frozen=True, kw_only=True)
class LabelledFiles:
    """What a format read: the images by split and class, and what a user should know about them."""

    path: Path  # as the user named it
    root: Path  # the images' names are relative to it, in digests and in messages
    title: str  # what the path is read as: "class folders", "CSV with the columns file, label"
    classes: tuple[str, ...]  # in the order of their indices
    images: Mapping[str, ClassFolders]  # by split (or `folder_layout.WHOLE`) and class, sorted
    groups: Mapping[Path, str] = field(default_factory=dict)  # images of one group share a split
    tables: tuple[Path, ...] = ()  # the files that hold the labels; none: they are the folders' names
    unread_images: tuple[Path, ...] = ()  # named by a table, in a format that is not read
    notes: tuple[str, ...] = ()  # a sentence each
    is_guess: bool = False  # its layout is not valid: the images are listed by the plain names of splits
    problem: str = ""  # why training rejects the dataset, where its images can be listed all the same

    @property
    def shown_root(self) -> Path:
        """Return the folder that file names are shown relative to: the one that the user named, or that of a table's images."""
        return self.root if self.tables else self.path

    @property
    def file_count(self) -> int:
        """Return the number of images."""
        return sum(len(paths) for by_class in self.images.values() for paths in by_class.values())
