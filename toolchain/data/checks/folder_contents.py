"""List the files of a dataset by class and split as training sees them, even where training would reject the folder."""

import dataclasses
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from toolchain.config.dataset import Domain
from toolchain.core.errors import ToolchainError
from toolchain.data import dataset_files, dataset_format
from toolchain.data.checks.finding import Finding
from toolchain.data.checks.wording import join_first, pluralize, to_display_path
from toolchain.data.formats.folders import folder_layout, system_files
from toolchain.data.formats.folders.folder_layout import WHOLE
from toolchain.data.formats.folders.image_formats import is_image, readable_suffixes
from toolchain.data.labelled_files import LabelledFiles
from toolchain.data.splits import SPLITS

# beside the formats that `image_formats` knows, and the further ones that Pillow does
FURTHER_SUFFIXES = {".npy", ".mp4", ".avi"}


@dataclass(frozen=True, kw_only=True)
class ImageFile:
    """One image file, with its class and split."""

    path: Path
    display_path: str  # relative to the folder, as `to_display_path` writes it
    label: str
    split: str  # "" where the folder could not be split
    group: str = ""  # that the dataset names; "": none


@dataclass(frozen=True, kw_only=True)
class FolderContents:
    """The files of a dataset; nothing is decoded yet."""

    root: Path
    classes: tuple[str, ...]
    image_files: tuple[ImageFile, ...]
    has_own_splits: bool  # the folder has train/, val/ and test/, so no split is drawn
    ignored_files: tuple[Path, ...]  # relative to the root, without system files
    findings: tuple[Finding, ...]


def list_contents(domain: Domain, cache: Path) -> FolderContents:
    """List a dataset as `dataset_files.find_images` does, or as its images lie there where that function rejects it.

    Raises:
        ToolchainError: no dataset, or no images in it.
    """
    findings = _check_group_pattern(domain)
    usable = dataclasses.replace(domain, group_pattern="") if findings else domain
    labelled = dataset_format.read(usable, cache)
    try:
        classes, image_files = _list_as_training(labelled, usable)
    except ToolchainError as reason:
        classes, image_files = _list_unsplit(labelled)
        message = str(reason).encode(errors="backslashreplace").decode()
        text = f"Training would reject this {'dataset' if labelled.tables else 'folder'}: {message}."
        findings.append(Finding(severity="severe", kind="refused", text=text))
    ignored_files = _list_unused(labelled, {file.path for file in image_files})
    return FolderContents(
        root=labelled.shown_root,
        classes=classes,
        image_files=image_files,
        has_own_splits=set(labelled.images) == set(SPLITS),
        ignored_files=ignored_files,
        findings=(
            *findings,
            *_note_layout(labelled),
            *(_check_table(labelled, ignored_files) if labelled.tables else _check_folder(labelled, ignored_files)),
            *_check_file_names(image_files),
        ),
    )


def _list_as_training(labelled: LabelledFiles, domain: Domain) -> tuple[tuple[str, ...], tuple[ImageFile, ...]]:
    """List classes and files with the splits of training; raise ToolchainError where training would."""
    dataset = dataset_files.split_images(labelled, domain)
    return dataset.classes, tuple(
        _make_image_file(labelled, path, dataset.classes[label], split)
        for split in SPLITS
        for path, label in zip(dataset.files[split], dataset.labels[split], strict=True)
    )


def _list_unsplit(labelled: LabelledFiles) -> tuple[tuple[str, ...], tuple[ImageFile, ...]]:
    """List classes and files as they lie there, without drawing any split."""
    names = {name for by_class in labelled.images.values() for name in by_class}
    return tuple(sorted(to_display_path(Path(name)) for name in names)), tuple(
        _make_image_file(labelled, path, to_display_path(Path(label)), "" if split == WHOLE else split)
        for split, by_class in labelled.images.items()
        for label, paths in by_class.items()
        for path in paths
    )


def _make_image_file(labelled: LabelledFiles, path: Path, label: str, split: str) -> ImageFile:
    display_path = to_display_path(path.relative_to(labelled.shown_root))
    return ImageFile(
        path=path, display_path=display_path, label=label, split=split, group=labelled.groups.get(path, "")
    )


def _list_unused(labelled: LabelledFiles, used: set[Path]) -> tuple[Path, ...]:
    """List the files that are not used, relative to the root: all, or the images that lie beside those of a table."""
    paths: Iterator[Path]
    if labelled.tables:
        folders = {path.parent for path in used}
        named = used.union(labelled.unread_images)
        paths = (path for folder in folders for path in folder.iterdir() if is_image(path) and path not in named)
    else:
        paths = (path for path in system_files.walk_files(labelled.path) if path not in used)
    return tuple(sorted(path.relative_to(labelled.shown_root) for path in paths if path.is_file()))


def _check_folder(labelled: LabelledFiles, ignored_files: tuple[Path, ...]) -> list[Finding]:
    """Report what in an image folder is not used."""
    root = labelled.path
    unread_images = folder_layout.list_unread_images(root)
    return [
        *_note_system_files(root),
        *_check_unread_images(root, unread_images),
        *_check_ignored_files([path for path in ignored_files if root / path not in unread_images]),
    ]


def _check_table(labelled: LabelledFiles, ignored_files: tuple[Path, ...]) -> list[Finding]:
    """Report images that a table of labels names and that are not read, and those beside them that it does not name."""
    findings = _check_unread_images(labelled.root, labelled.unread_images)
    if ignored_files:
        text = (
            f"{pluralize(len(ignored_files))} beside the labelled ones will not be used, as no row of "
            f"{join_first([to_display_path(Path(table.name)) for table in labelled.tables])} names "
            f"{'it' if len(ignored_files) == 1 else 'them'}. Add rows, if their classes are known."
        )
        files = _to_display_paths(ignored_files)
        findings.append(Finding(severity="warning", kind="images without a row", text=text, files=files))
    return findings


def _check_group_pattern(domain: Domain) -> list[Finding]:
    """Report a `group_pattern` that is not a regular expression with a group."""
    try:
        groups = re.compile(domain.group_pattern).groups if domain.group_pattern else 1
    except re.error as reason:
        problem = f"is not a regular expression ({reason})"
    else:
        if groups:
            return []
        problem = "has no group in parentheses that names the exposure"
    text = f"group_pattern {domain.group_pattern!r} {problem}, so it is ignored here. Correct it in the domain."
    return [Finding(severity="severe", kind="group pattern", text=text)]


def _note_layout(labelled: LabelledFiles) -> list[Finding]:
    """Say what is read as what, where it is not plain."""
    heading = "Labels" if labelled.tables else "Folder layout"
    return [Finding(severity="note", kind="layout", text=f"{heading}: {note}.") for note in labelled.notes]


def _note_system_files(root: Path) -> list[Finding]:
    """Count the files that operating systems and programs left in the folder."""
    paths = system_files.list_system_files(root)
    text = f"{system_files.describe_system_files(paths)}."
    return [Finding(severity="note", kind="system files", text=text, files=_to_display_paths(paths))] if paths else []


def _check_unread_images(root: Path, images: tuple[Path, ...]) -> list[Finding]:
    """Report images in formats that are not read."""
    text = f"{folder_layout.describe_unread_images(images)}."
    files = _to_display_paths([path.relative_to(root) for path in images])
    return [Finding(severity="warning", kind="unread formats", text=text, files=files)] if images else []


def _check_ignored_files(paths: Sequence[Path]) -> list[Finding]:
    """Report files that are not read: a warning where they are images, or may be."""
    image_suffixes = FURTHER_SUFFIXES | readable_suffixes() | set(Image.registered_extensions())
    images = [path for path in paths if path.suffix.lower() in image_suffixes]
    others = [path for path in paths if path.suffix.lower() not in image_suffixes]
    findings = []
    if images:
        counts = Counter(path.suffix.lower() for path in images).most_common(4)
        suffixes = ", ".join(f"{n:,} {suffix}" for suffix, n in counts)
        text = (
            f"{pluralize(len(images), 'file')} may be images but will not be used ({suffixes}): they lie outside the class "
            "folders, or their format is not read. Move or convert them."
        )
        findings.append(
            Finding(severity="warning", kind="ignored pictures", text=text, files=_to_display_paths(images))
        )
    if others:
        text = f"{pluralize(len(others), 'file')} will not be used: the suffix is not that of an image."
        findings.append(Finding(severity="note", kind="ignored files", text=text, files=_to_display_paths(others)))
    return findings


def _to_display_paths(paths: Sequence[Path]) -> tuple[str, ...]:
    return tuple(to_display_path(path) for path in paths)


def _check_file_names(files: tuple[ImageFile, ...]) -> list[Finding]:
    """Report file names that are not plain text."""
    odd = tuple(file.display_path for file in files if "\\x" in file.display_path)
    if not odd:
        return []
    text = (
        f"{pluralize(len(odd), 'file name')} cannot be written as plain text: {join_first(odd)}. Rename them, as other "
        "programs may fail on them."
    )
    return [Finding(severity="warning", kind="file names", text=text, files=odd)]
