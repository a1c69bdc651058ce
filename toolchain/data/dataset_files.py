"""List the images of a dataset by class and split, without decoding any; draw the splits that it does not bring."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from toolchain.config.dataset import Domain
from toolchain.core import files
from toolchain.core.errors import ToolchainError
from toolchain.data import dataset_format
from toolchain.data.formats.folders.class_names import ClassFolders, to_nfc
from toolchain.data.formats.folders.folder_layout import WHOLE
from toolchain.data.labelled_files import LabelledFiles
from toolchain.data.splits import SPLITS, LabelledFile, Split, check_split, group_files, split_off


@dataclass(frozen=True)
class DatasetFiles:
    """The files of a dataset by split, with their class indices; nothing is decoded yet."""

    root: Path
    classes: tuple[str, ...]
    files: Mapping[Split, Sequence[Path]]
    labels: Mapping[Split, Sequence[int]]
    digest: str  # over relative names and bytes of all files, their classes and splits


def find_images(domain: Domain, cache: Path) -> DatasetFiles:
    """List a dataset's images by split; draw the splits that it does not bring.

    Args:
        domain: the dataset.
        cache: folder in which a bundled source and the images of parquet files are written.

    Raises:
        ToolchainError: no dataset, no images, a class without images, classes that differ between splits, or fewer
            images than the splits need.
    """
    return split_images(dataset_format.read(domain, cache), domain)


def split_images(labelled: LabelledFiles, domain: Domain) -> DatasetFiles:
    """Draw the splits that a dataset does not bring.

    Raises:
        ToolchainError: training rejects the dataset, or it has fewer images than the splits need.
    """
    if labelled.problem:
        raise ToolchainError(labelled.problem)
    classes, root = labelled.classes, labelled.root
    by_part = {name: _label(by_class, classes) for name, by_class in labelled.images.items()}
    hashes = {path: files.sha256_file(path) for part in by_part.values() for path, _ in part}
    training = by_part.pop(WHOLE, None) or by_part["train"]
    by_split: dict[Split, list[LabelledFile]] = {"train": training}
    shares: tuple[tuple[Split, float], ...] = (("test", domain.test_share), ("val", domain.validation_share))
    for split, share in shares:
        if split in by_part:
            by_split[split] = by_part[split]
        else:
            groups = group_files(by_split["train"], hashes, domain.group_pattern, labelled.groups)
            by_split["train"], by_split[split] = split_off(groups, share, domain.split_seed)
    for split in SPLITS:
        try:
            check_split(split, by_split[split], classes, root, every_class=domain.shows_every_class)
        except ToolchainError as reason:
            raise ToolchainError(f"{reason}{_describe_groups(labelled, domain)}") from reason
    return DatasetFiles(
        root,
        classes,
        {split: [path for path, _ in by_split[split]] for split in SPLITS},
        {split: [label for _, label in by_split[split]] for split in SPLITS},
        _digest(root, by_split, classes, hashes),
    )


def list_by_class(domain: Domain, cache: Path) -> dict[str, list[Path]]:
    """List all image files of a dataset by class, whatever split they lie in.

    Raises:
        ToolchainError: no dataset, or no images in it.
    """
    labelled = dataset_format.read(domain, cache)
    if labelled.is_guess:
        raise ToolchainError(labelled.problem)
    return merge_splits(labelled)


def merge_splits(labelled: LabelledFiles) -> dict[str, list[Path]]:
    """Return the images of all splits by class; classes are sorted by name, those without images are left out."""
    by_class: dict[str, list[Path]] = {}
    for part in labelled.images.values():
        for name, paths in part.items():
            by_class.setdefault(name, []).extend(paths)
    return {name: paths for name, paths in sorted(by_class.items()) if paths}


def _describe_groups(labelled: LabelledFiles, domain: Domain) -> str:
    """Return why few images may be too few: groups are never divided; "" where there are no groups."""
    if domain.group_pattern:
        return f"; group_pattern = {domain.group_pattern!r} keeps groups whole, so every class needs several groups"
    return "; the group column keeps groups whole, so every class needs several groups" if labelled.groups else ""


def _label(by_class: ClassFolders, classes: Sequence[str]) -> list[LabelledFile]:
    """List the images class by class with their indices in `classes`, which may be in another Unicode form."""
    paths = {to_nfc(name): images for name, images in by_class.items()}
    return [(path, index) for index, name in enumerate(classes) for path in paths.get(to_nfc(name), ())]


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
