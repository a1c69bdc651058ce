"""List the files of a dataset by class and split as training sees them, even where training would reject the folder."""

import dataclasses
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from toolchain.config.dataset import Domain
from toolchain.core.errors import ToolchainError
from toolchain.data.checks.finding import Finding
from toolchain.data.checks.wording import join_first, pluralize, to_display_path
from toolchain.data.formats import image_folder
from toolchain.data.formats.folders import folder_layout, system_files
from toolchain.data.formats.folders.folder_layout import FolderLayout
from toolchain.data.formats.folders.image_formats import readable_suffixes
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
    """List a dataset as `image_folder.find_images` does, or as it lies in the folder where that function rejects it.

    Raises:
        ToolchainError: no folder, or no images in it.
    """
    root = image_folder.locate_root(domain, cache)
    findings = _check_group_pattern(domain)
    usable = dataclasses.replace(domain, group_pattern="") if findings else domain
    layout = _read_layout(root, usable)
    try:
        classes, image_files = _list_as_training(usable, root, cache)
    except ToolchainError as reason:
        classes, image_files = _list_unchecked(layout, root)
        if not image_files:
            raise
        message = str(reason).encode(errors="backslashreplace").decode()
        text = f"Training would reject this folder: {message}."
        findings.append(Finding(severity="severe", kind="refused", text=text))
    used = {file.path for file in image_files}
    unused = (path for path in system_files.walk_files(root) if path not in used)
    ignored_files = tuple(sorted(path.relative_to(root) for path in unused if path.is_file()))
    unread_images = folder_layout.list_unread_images(root)
    return FolderContents(
        root=root,
        classes=classes,
        image_files=image_files,
        has_own_splits=layout is not None and set(layout.split_folders) == set(SPLITS),
        ignored_files=ignored_files,
        findings=(
            *findings,
            *_note_layout(layout),
            *_note_system_files(root),
            *_check_unread_images(root, unread_images),
            *_check_ignored_files([path for path in ignored_files if root / path not in unread_images]),
            *_check_file_names(image_files),
        ),
    )


def _list_as_training(domain: Domain, root: Path, cache: Path) -> tuple[tuple[str, ...], tuple[ImageFile, ...]]:
    """List classes and files with the splits of training; raise ToolchainError where training would."""
    dataset = image_folder.find_images(domain, cache)
    return dataset.classes, tuple(
        _make_image_file(path, root, dataset.classes[label], split)
        for split in SPLITS
        for path, label in zip(dataset.files[split], dataset.labels[split], strict=True)
    )


def _read_layout(root: Path, domain: Domain) -> FolderLayout | None:
    """Return the folder's layout; None where training would reject it."""
    try:
        return folder_layout.read_layout(root, domain.classes)
    except ToolchainError:
        return None


def _list_unchecked(layout: FolderLayout | None, root: Path) -> tuple[tuple[str, ...], tuple[ImageFile, ...]]:
    """List classes and files as they lie in the folder; without a valid layout, by the plain names of splits."""
    folders = {split: root / split for split in SPLITS if (root / split).is_dir()}
    given_splits: dict[str, Path] = {split: path for split, path in folders.items() if system_files.list_folders(path)}
    parts = given_splits or {folder_layout.WHOLE: root}
    images = layout.images if layout else {name: folder_layout.scan_class_folders(path) for name, path in parts.items()}
    labels = sorted({to_display_path(Path(label)) for by_class in images.values() for label in by_class})
    return tuple(labels), tuple(
        _make_image_file(path, root, to_display_path(Path(label)), "" if split == folder_layout.WHOLE else split)
        for split, by_class in images.items()
        for label, paths in by_class.items()
        for path in paths
    )


def _make_image_file(path: Path, root: Path, label: str, split: str) -> ImageFile:
    return ImageFile(path=path, display_path=to_display_path(path.relative_to(root)), label=label, split=split)


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


def _note_layout(layout: FolderLayout | None) -> list[Finding]:
    """Say what is read as what, where it is not plain."""
    notes = layout.layout_notes if layout else ()
    return [Finding(severity="note", kind="layout", text=f"Folder layout: {note}.") for note in notes]


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
