"""Which files a domain has, in which class and split: as training sees them, and still where training would refuse."""

import dataclasses
import re
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from toolchain.config.dataset import Domain
from toolchain.core.errors import ToolchainError
from toolchain.data import image_folder
from toolchain.data.checks.finding import Finding, join_first, pluralize, to_display_path
from toolchain.data.splits import SPLITS

# pictures by any camera's or program's reckoning, which nobody here reads; Pillow's own further kinds join them
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
    """One picture file."""

    path: Path
    display_path: str  # relative to the folder, as `shown` writes it
    label: str
    split: str  # "" where the folder could not be split


@dataclass(frozen=True, kw_only=True)
class FolderContents:
    """A domain's files, nothing decoded yet."""

    root: Path
    classes: tuple[str, ...]
    image_files: tuple[ImageFile, ...]
    has_own_splits: bool  # all three splits are the folder's own
    ignored_files: tuple[Path, ...]  # relative
    findings: tuple[Finding, ...]


def list_contents(domain: Domain, cache: Path) -> FolderContents:
    """Lists a domain as `listing.find` does, or as it lies there where that refuses.

    Raises:
        ToolchainError: there is no folder, or not a single picture in it.
    """
    root = image_folder.locate_root(domain, cache)
    findings = _pattern(domain)
    usable = dataclasses.replace(domain, group_pattern="") if findings else domain
    try:
        classes, entries = _as_training(usable, root, cache)
    except ToolchainError as reason:
        classes, entries = _as_it_lies(root)
        if not entries:
            raise
        text = str(reason).encode(errors="backslashreplace").decode()
        findings.append(Finding(severity="severe", kind="refused", text=f"Training would refuse this folder: {text}."))
    known = {entry.path for entry in entries}
    every = (p for p in root.rglob("*") if p not in known and not _hidden(p.relative_to(root)))
    ignored = tuple(sorted(p.relative_to(root) for p in every if p.is_file()))
    given = all((root / split).is_dir() for split in SPLITS)
    findings += [*_ignored(ignored), *_names(entries)]
    return FolderContents(
        root=root,
        classes=classes,
        image_files=entries,
        has_own_splits=given,
        ignored_files=ignored,
        findings=tuple(findings),
    )


def _as_training(domain: Domain, root: Path, cache: Path) -> tuple[tuple[str, ...], tuple[ImageFile, ...]]:
    found = image_folder.find_images(domain, cache)
    return found.classes, tuple(
        _entry(path, root, found.classes[label], split)
        for split in SPLITS
        for path, label in zip(found.files[split], found.labels[split], strict=True)
    )


def _as_it_lies(root: Path) -> tuple[tuple[str, ...], tuple[ImageFile, ...]]:
    given = [split for split in SPLITS if (root / split).is_dir()]
    found = (
        {split: image_folder.scan_class_folders(root / split) for split in given}
        if given
        else {"": image_folder.scan_class_folders(root)}
    )
    labels = sorted({to_display_path(Path(label)) for classes in found.values() for label in classes})
    return tuple(labels), tuple(
        _entry(path, root, to_display_path(Path(label)), split)
        for split, classes in found.items()
        for label, paths in classes.items()
        for path in paths
    )


def _entry(path: Path, root: Path, label: str, split: str) -> ImageFile:
    return ImageFile(path=path, display_path=to_display_path(path.relative_to(root)), label=label, split=split)


def _hidden(path: Path) -> bool:
    return any(part.startswith(".") for part in path.parts)


def _pattern(domain: Domain) -> list[Finding]:
    """Whether the domain's `group_pattern` can be used at all."""
    try:
        groups = re.compile(domain.group_pattern).groups if domain.group_pattern else 1
    except re.error as reason:
        problem = f"is no regular expression ({reason})"
    else:
        if groups:
            return []
        problem = "has no group in parentheses that names the exposure"
    text = f"group_pattern {domain.group_pattern!r} {problem}; correct it in the domain, it was left out here."
    return [Finding(severity="severe", kind="group pattern", text=text)]


def _ignored(paths: tuple[Path, ...]) -> list[Finding]:
    """Files that nobody reads; worse where they look like pictures, or are pictures in the wrong place."""
    further = UNSUPPORTED_SUFFIXES | set(Image.registered_extensions())
    pictures = [path for path in paths if path.suffix.lower() in further]
    rest = [path for path in paths if path.suffix.lower() not in further]
    findings = []
    if pictures:
        kinds = ", ".join(f"{n:,} {suffix}" for suffix, n in Counter(p.suffix.lower() for p in pictures).most_common(4))
        text = (
            f"{pluralize(len(pictures), 'file')} may be pictures but will not be used ({kinds}): they lie outside the class "
            "folders or have a suffix that is not read; move or convert them."
        )
        findings.append(Finding(severity="warning", kind="ignored pictures", text=text, files=_shown(pictures)))
    if rest:
        text = f"{pluralize(len(rest), 'file')} will not be used, as the suffix is no picture's."
        findings.append(Finding(severity="note", kind="ignored files", text=text, files=_shown(rest)))
    return findings


def _shown(paths: list[Path]) -> tuple[str, ...]:
    return tuple(to_display_path(path) for path in paths)


def _names(entries: tuple[ImageFile, ...]) -> list[Finding]:
    odd = tuple(entry.display_path for entry in entries if "\\x" in entry.display_path)
    if not odd:
        return []
    text = (
        f"{pluralize(len(odd), 'file name')} cannot be written as plain text ({join_first(odd)}); other programs may stumble "
        "over them, rename them."
    )
    return [Finding(severity="warning", kind="file names", text=text, files=odd)]
