"""List the images of a class-folder dataset by class and split, without decoding any.

Both layouts are read: `<folder>/<class>/<image>` and `<folder>/<split>/<class>/<image>`. A split that the folder does
not have is drawn from the training images.
"""

import hashlib
import importlib
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from toolchain.config.dataset import Domain
from toolchain.core import files
from toolchain.core.errors import ToolchainError
from toolchain.data.splits import SPLITS, LabelledFile, Split, check_split, group_files, split_off

IMAGE_SUFFIXES = {".png", ".jpg", ".jpeg", ".bmp", ".webp", ".tif", ".tiff", ".gif", ".pgm", ".ppm"}


@dataclass(frozen=True)
class DatasetFiles:
    """The files of a dataset by split, with their class indices; nothing is decoded yet."""

    root: Path
    classes: tuple[str, ...]
    files: Mapping[Split, Sequence[Path]]
    labels: Mapping[Split, Sequence[int]]
    digest: str  # over relative names and bytes of all files, their classes and splits


def find_images(domain: Domain, cache: Path) -> DatasetFiles:
    """List a dataset's images by split; draw the splits that the folder does not have.

    Args:
        domain: the dataset.
        cache: folder in which a bundled source is written.

    Raises:
        ToolchainError: no folder, no images, a class without images, classes that differ between splits, or fewer
            images than the splits need.
    """
    root = locate_root(domain, cache)
    given_splits = [split for split in SPLITS if (root / split).is_dir()]
    if given_splits and "train" not in given_splits:
        raise ToolchainError(
            f"{root} has {', '.join(given_splits)}/ but no train/; give all of train/ val/ test/, or none of them"
        )
    folders: dict[str, dict[str, list[Path]]] = (
        {split: scan_class_folders(root / split) for split in given_splits}
        if given_splits
        else {"all": scan_class_folders(root)}
    )
    classes = _check_classes(domain, root, folders)
    labelled = {
        name: [(path, classes.index(label)) for label in classes for path in paths[label]]
        for name, paths in folders.items()
    }
    hashes = {path: files.sha256_file(path) for part in labelled.values() for path, _ in part}
    training = labelled.pop("all", None) or labelled["train"]
    by_split: dict[Split, list[LabelledFile]] = {"train": training}
    shares: tuple[tuple[Split, float], ...] = (("test", domain.test_share), ("val", domain.validation_share))
    for split, share in shares:
        if split in labelled:
            by_split[split] = labelled[split]
        else:
            groups = group_files(by_split["train"], hashes, domain.group_pattern)
            by_split["train"], by_split[split] = split_off(groups, share, domain.split_seed)
    for split in SPLITS:
        try:
            check_split(split, by_split[split], classes, root)
        except ToolchainError as reason:
            hint = f"; group_pattern = {domain.group_pattern!r} keeps groups whole, so every class needs several groups"
            raise ToolchainError(f"{reason}{hint if domain.group_pattern else ''}") from reason
    return DatasetFiles(
        root,
        classes,
        {split: [path for path, _ in by_split[split]] for split in SPLITS},
        {split: [label for _, label in by_split[split]] for split in SPLITS},
        _digest(root, by_split, classes, hashes),
    )


def locate_root(domain: Domain, cache: Path) -> Path:
    """Return the folder of a dataset; write a bundled source to `cache` first.

    Raises:
        ToolchainError: no folder is named, or it does not exist.
    """
    if domain.source != "folder":
        folder = cache / domain.source
        with files.lock_folder(folder, wait=True):
            source = importlib.import_module(f"toolchain.data.sources.{domain.source}")
            version, mark = files.sha256_file(Path(str(source.__file__))), folder / "COMPLETE"
            if not mark.exists() or mark.read_text() != version:
                shutil.rmtree(folder / "images", ignore_errors=True)
                source.write(folder / "images")
                files.write_text(mark, version)
        return folder / "images"
    if not domain.path:
        raise ToolchainError(f"domain {domain.name!r} has no image folder; give one with DATA=folder or --data folder")
    root = Path(domain.path)
    if not root.is_dir():
        raise ToolchainError(f"image folder {root} does not exist; give one with DATA=folder or --data folder")
    return root


def scan_class_folders(folder: Path) -> dict[str, list[Path]]:
    """List the image files below each class folder, sorted; hidden folders are skipped."""
    class_folders = sorted(path for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))
    return {
        class_folder.name: sorted(
            path for path in class_folder.rglob("*") if path.suffix.lower() in IMAGE_SUFFIXES and path.is_file()
        )
        for class_folder in class_folders
    }


def list_by_class(domain: Domain, cache: Path) -> dict[str, list[Path]]:
    """List all image files of a dataset by class, whatever split they lie in.

    Raises:
        ToolchainError: no folder, or no images in it.
    """
    root = locate_root(domain, cache)
    folders = [root / split for split in SPLITS if (root / split).is_dir()] or [root]
    by_class: dict[str, list[Path]] = {}
    for folder in folders:
        for name, paths in scan_class_folders(folder).items():
            by_class.setdefault(name, []).extend(paths)
    by_class = {name: paths for name, paths in sorted(by_class.items()) if paths}
    if not by_class:
        raise ToolchainError(f"{root} has no images in class folders; expected are {root}/<class>/<image>")
    return by_class


def _check_classes(domain: Domain, root: Path, folders: Mapping[str, Mapping[str, Sequence[Path]]]) -> tuple[str, ...]:
    """Return the class names; raise ToolchainError where splits or the domain disagree on them, or one has no images."""
    first_name, first = next(iter(folders.items()))
    if not first:
        raise ToolchainError(
            f"{root} has no class folders; expected are {root}/<class>/<image> or {root}/train/<class>/<image>"
        )
    for name, by_class in folders.items():
        if set(by_class) != set(first):
            odd = sorted(set(by_class) ^ set(first))
            raise ToolchainError(
                f"{first_name}/ and {name}/ of {root} have different classes; only in one of them: {', '.join(odd)}"
            )
        for label, paths in by_class.items():
            if not paths:
                class_folder = root / label if name == "all" else root / name / label
                raise ToolchainError(
                    f"class {label!r} has no images in {class_folder}; add images or remove the folder"
                )
    if domain.classes and set(domain.classes) != set(first):
        odd = sorted(set(domain.classes) ^ set(first))
        raise ToolchainError(
            f"the classes of domain {domain.name!r} are not the class folders of {root}; only in one of them: "
            f"{', '.join(odd)}"
        )
    for label in first:
        if not label.isprintable() or label != label.encode(errors="replace").decode():
            raise ToolchainError(f"class folder {label!r} in {root} has a name that is not plain text; rename it")
    if len(first) < 2:
        raise ToolchainError(f"{root} has a single class, {next(iter(first))!r}; a classifier needs at least two")
    return domain.classes or tuple(sorted(first))


def _digest(
    root: Path, by_split: Mapping[Split, Sequence[LabelledFile]], classes: Sequence[str], hashes: Mapping[Path, str]
) -> str:
    """Hash the relative names and bytes of all files, with their classes and splits."""
    total = hashlib.sha256(repr(tuple(classes)).encode())
    for split in SPLITS:
        for path, label in by_split[split]:
            name = path.relative_to(root).as_posix().encode(errors="surrogateescape")
            total.update(f"{split} {label} {hashes[path]} ".encode() + name)
    return total.hexdigest()
