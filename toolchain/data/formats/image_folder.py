"""List the images of a class-folder dataset by class and split, without decoding any.

`folder_layout` says which layouts are read. A split that the folder does not have is drawn from the training images.
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
from toolchain.data.formats.folders import folder_checks
from toolchain.data.formats.folders.class_names import ClassFolders, to_nfc
from toolchain.data.formats.folders.folder_layout import WHOLE, read_layout
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
    """List a dataset's images by split; draw the splits that the folder does not have.

    Args:
        domain: the dataset.
        cache: folder in which a bundled source is written.

    Raises:
        ToolchainError: no folder, no images, a class without images, classes that differ between splits, or fewer
            images than the splits need.
    """
    layout = read_layout(locate_root(domain, cache), domain.classes)
    classes = folder_checks.list_classes(layout, domain)
    root = layout.root
    labelled = {name: _label(by_class, classes) for name, by_class in layout.images.items()}
    hashes = {path: files.sha256_file(path) for part in labelled.values() for path, _ in part}
    training = labelled.pop(WHOLE, None) or labelled["train"]
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
        ToolchainError: no folder is named, it does not exist, it is a file, or it may not be read.
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
    return folder_checks.locate_folder(domain)


def list_by_class(domain: Domain, cache: Path) -> dict[str, list[Path]]:
    """List all image files of a dataset by class, whatever split they lie in.

    Raises:
        ToolchainError: no folder, or no images in it.
    """
    by_class: dict[str, list[Path]] = {}
    for folders in read_layout(locate_root(domain, cache), domain.classes).images.values():
        for name, paths in folders.items():
            by_class.setdefault(name, []).extend(paths)
    return {name: paths for name, paths in sorted(by_class.items()) if paths}


def _label(by_class: ClassFolders, classes: Sequence[str]) -> list[LabelledFile]:
    """List the images class by class with their indices in `classes`, which may be in another Unicode form."""
    paths = {to_nfc(name): images for name, images in by_class.items()}
    return [(path, index) for index, name in enumerate(classes) for path in paths[to_nfc(name)]]


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
