"""List the files of a dataset by class and split as training sees them, even where training would reject the folder."""

import dataclasses
import re
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from toolchain.config.dataset import Domain
from toolchain.core.errors import ToolchainError
from toolchain.data import image_folder
from toolchain.data.checks.finding import Finding
from toolchain.data.checks.wording import join_first, pluralize, to_display_path
from toolchain.data.splits import SPLITS

# image formats of cameras and programs that are not read here, beside the further ones that Pillow knows
UNSUPPORTED_SUFFIXES = {
    ".heic",
    ".heif",
    ".dng",
    ".raw",
    ".cr2",
    ".cr3",
    ".nef",
    ".arw",
    ".orf",
    ".npy",
    ".mp4",
    ".avi",
}


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
    ignored_files: tuple[Path, ...]  # relative to the root
    findings: tuple[Finding, ...]


def list_contents(domain: Domain, cache: Path) -> FolderContents:
    """List a dataset as `image_folder.find_images` does, or as it lies in the folder where that function rejects it.

    Raises:
        ToolchainError: no folder, or no images in it.
    """
    root = image_folder.locate_root(domain, cache)
    findings = _check_group_pattern(domain)
    usable = dataclasses.replace(domain, group_pattern="") if findings else domain
    try:
        classes, image_files = _list_as_training(usable, root, cache)
    except ToolchainError as reason:
        classes, image_files = _list_unchecked(root)
        if not image_files:
            raise
        message = str(reason).encode(errors="backslashreplace").decode()
        text = f"Training would reject this folder: {message}."
        findings.append(Finding(severity="severe", kind="refused", text=text))
    used = {file.path for file in image_files}
    unused = (path for path in root.rglob("*") if path not in used and not _is_hidden(path.relative_to(root)))
    ignored_files = tuple(sorted(path.relative_to(root) for path in unused if path.is_file()))
    return FolderContents(
        root=root,
        classes=classes,
        image_files=image_files,
        has_own_splits=all((root / split).is_dir() for split in SPLITS),
        ignored_files=ignored_files,
        findings=(*findings, *_check_ignored_files(ignored_files), *_check_file_names(image_files)),
    )


def _list_as_training(domain: Domain, root: Path, cache: Path) -> tuple[tuple[str, ...], tuple[ImageFile, ...]]:
    """List classes and files with the splits of training; raise ToolchainError where training would."""
    dataset = image_folder.find_images(domain, cache)
    return dataset.classes, tuple(
        _make_image_file(path, root, dataset.classes[label], split)
        for split in SPLITS
        for path, label in zip(dataset.files[split], dataset.labels[split], strict=True)
    )


def _list_unchecked(root: Path) -> tuple[tuple[str, ...], tuple[ImageFile, ...]]:
    """List classes and files as they lie in the folder."""
    given_splits = [split for split in SPLITS if (root / split).is_dir()]
    by_split = (
        {split: image_folder.scan_class_folders(root / split) for split in given_splits}
        if given_splits
        else {"": image_folder.scan_class_folders(root)}
    )
    labels = sorted({to_display_path(Path(label)) for by_class in by_split.values() for label in by_class})
    return tuple(labels), tuple(
        _make_image_file(path, root, to_display_path(Path(label)), split)
        for split, by_class in by_split.items()
        for label, paths in by_class.items()
        for path in paths
    )


def _make_image_file(path: Path, root: Path, label: str, split: str) -> ImageFile:
    return ImageFile(path=path, display_path=to_display_path(path.relative_to(root)), label=label, split=split)


def _is_hidden(path: Path) -> bool:
    return any(part.startswith(".") for part in path.parts)


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


def _check_ignored_files(paths: tuple[Path, ...]) -> list[Finding]:
    """Report files that are not read: a warning where they are images, or may be."""
    image_suffixes = UNSUPPORTED_SUFFIXES | set(Image.registered_extensions())
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


def _to_display_paths(paths: list[Path]) -> tuple[str, ...]:
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
