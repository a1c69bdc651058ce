"""Image folders to lists of files by class and split; nothing is decoded here.

Files that belong together (identical bytes, or one exposure group by the domain's `group_pattern`) never end up on
two sides of a split that is drawn here.
"""

import hashlib
import importlib
import re
import shutil
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from toolchain.config.dataset import Domain
from toolchain.core import files as records
from toolchain.core.errors import ToolchainError

Split = Literal["train", "val", "test"]
SPLITS: tuple[Split, ...] = ("train", "val", "test")
IMAGE_SUFFIXES = {".png", ".jpg", ".jpeg", ".bmp", ".webp", ".tif", ".tiff", ".gif", ".pgm", ".ppm"}
MIN_IMAGES_PER_CLASS = 1
LabelledFile = tuple[Path, int]  # file and class


@dataclass(frozen=True)
class DatasetFiles:
    """The files of a domain by split, with their class indices; nothing decoded yet."""

    root: Path
    classes: tuple[str, ...]
    files: Mapping[Split, Sequence[Path]]
    labels: Mapping[Split, Sequence[int]]
    digest: str  # over relative names and bytes of all files, their classes and splits


def find_images(domain: Domain, cache: Path) -> DatasetFiles:
    """Finds the images and decides the splits.

    Raises:
        ToolchainError: no folder, no images, a class without images, classes that differ between splits, or fewer
            images than the splits need.
    """
    root = locate_root(domain, cache)
    given = [split for split in SPLITS if (root / split).is_dir()]
    if given and "train" not in given:
        raise ToolchainError(f"{root} has {', '.join(given)}/ but no train/; give all of train/ val/ test/, or none")
    sources: dict[str, dict[str, list[Path]]] = (
        {split: scan_class_folders(root / split) for split in given} if given else {"all": scan_class_folders(root)}
    )
    classes = _classes(domain, root, sources)
    entries = {
        name: [(path, classes.index(label)) for label in classes for path in found[label]]
        for name, found in sources.items()
    }
    hashes = {path: records.sha256_file(path) for found in entries.values() for path, _ in found}
    whole = entries.pop("all", None) or entries["train"]
    by_split: dict[Split, list[LabelledFile]] = {"train": whole}
    shares: tuple[tuple[Split, float], ...] = (("test", domain.test_share), ("val", domain.validation_share))
    for split, share in shares:
        if split in entries:
            by_split[split] = entries[split]
        else:
            by_split["train"], by_split[split] = _stratified(
                _together(by_split["train"], hashes, domain.group_pattern), share, domain.split_seed
            )
    for split in SPLITS:
        try:
            check_split(split, by_split[split], classes, root)
        except ToolchainError as reason:
            kept = f"; group_pattern = {domain.group_pattern!r} keeps groups whole, so it takes several of each class"
            raise ToolchainError(f"{reason}{kept if domain.group_pattern else ''}") from reason
    return DatasetFiles(
        root,
        classes,
        {split: [path for path, _ in by_split[split]] for split in SPLITS},
        {split: [label for _, label in by_split[split]] for split in SPLITS},
        _digest(root, by_split, classes, hashes),
    )


def locate_root(domain: Domain, cache: Path) -> Path:
    """The folder of a domain; a bundled source is written there first.

    Raises:
        ToolchainError: no folder is named, or it is not there.
    """
    if domain.source != "folder":
        folder = cache / domain.source
        with records.lock_folder(folder, wait=True):
            room = importlib.import_module(f"toolchain.data.sources.{domain.source}")
            version, mark = records.sha256_file(Path(str(room.__file__))), folder / "COMPLETE"
            if not mark.exists() or mark.read_text() != version:
                shutil.rmtree(folder / "images", ignore_errors=True)
                room.write(folder / "images")
                records.write_text(mark, version)
        return folder / "images"
    if not domain.path:
        raise ToolchainError(f"domain {domain.name!r} has no image folder; give one with DATA=folder or --data folder")
    root = Path(domain.path)
    if not root.is_dir():
        raise ToolchainError(f"image folder {root} is not there; give one with DATA=folder or --data folder")
    return root


def scan_class_folders(folder: Path) -> dict[str, list[Path]]:
    """Picture files by class folder."""
    names = sorted(p for p in folder.iterdir() if p.is_dir() and not p.name.startswith("."))
    return {
        p.name: sorted(f for f in p.rglob("*") if f.suffix.lower() in IMAGE_SUFFIXES and f.is_file()) for p in names
    }


def list_by_class(domain: Domain, cache: Path) -> dict[str, list[Path]]:
    """All picture files of a domain by class, whatever split they lie in.

    Raises:
        ToolchainError: no folder, or no pictures in it.
    """
    root = locate_root(domain, cache)
    folders = [root / split for split in SPLITS if (root / split).is_dir()] or [root]
    found: dict[str, list[Path]] = {}
    for folder in folders:
        for name, files in scan_class_folders(folder).items():
            found.setdefault(name, []).extend(files)
    found = {name: files for name, files in sorted(found.items()) if files}
    if not found:
        raise ToolchainError(f"{root} has no pictures in class folders; expected are {root}/<class>/<image>")
    return found


def _classes(domain: Domain, root: Path, sources: Mapping[str, Mapping[str, Sequence[Path]]]) -> tuple[str, ...]:
    first_name, first = next(iter(sources.items()))
    if not first:
        raise ToolchainError(
            f"{root} has no class folders; expected are {root}/<class>/<image> or {root}/train/<class>/…"
        )
    for name, found in sources.items():
        if set(found) != set(first):
            odd = sorted(set(found) ^ set(first))
            raise ToolchainError(
                f"{first_name}/ and {name}/ of {root} have different classes; only in one: {', '.join(odd)}"
            )
        for label, files in found.items():
            if not files:
                where = root / label if name == "all" else root / name / label
                raise ToolchainError(f"class {label!r} has no images in {where}; remove the folder or add images")
    if domain.classes and set(domain.classes) != set(first):
        odd = sorted(set(domain.classes) ^ set(first))
        raise ToolchainError(f"domain {domain.name!r} and {root} disagree on the classes: {', '.join(odd)}")
    for label in first:
        if not label.isprintable() or label != label.encode(errors="replace").decode():
            raise ToolchainError(f"class folder {label!r} in {root} has a name that is not plain text; rename it")
    if len(first) < 2:
        raise ToolchainError(f"{root} has a single class, {next(iter(first))!r}; a classifier needs at least two")
    return domain.classes or tuple(sorted(first))


def _together(entries: Sequence[LabelledFile], hashes: Mapping[Path, str], pattern: str) -> list[list[LabelledFile]]:
    """Entries in the groups that must share a split: identical files, and what `pattern` names alike."""
    if not entries:
        return []
    marks: dict[str, int] = {}
    pairs = []
    for row, (path, _) in enumerate(entries):
        named = re.search(pattern, path.name) if pattern else None
        for mark in (hashes[path], *([f"group {named[1]}"] if named and named[1] else [])):
            pairs.append((row, len(entries) + marks.setdefault(mark, len(marks))))
    rows, columns = np.array(pairs).T
    size = len(entries) + len(marks)
    graph = coo_array((np.ones(len(pairs), np.int8), (rows, columns)), shape=(size, size))
    groups: dict[int, list[LabelledFile]] = {}
    for entry, group in zip(entries, connected_components(graph, directed=False)[1], strict=False):
        groups.setdefault(int(group), []).append(entry)
    return list(groups.values())


def _stratified(
    groups: Sequence[Sequence[LabelledFile]], share: float, seed: int
) -> tuple[list[LabelledFile], list[LabelledFile]]:
    """Splits off `share` of every class, at least one image of it, at random by `seed`; a group goes as one.

    A group of several classes counts for the rarest of them, which has the fewest to choose from.
    """
    counts = Counter(label for group in groups for _, label in group)
    by_class: dict[int, list[Sequence[LabelledFile]]] = {}
    for group in groups:
        by_class.setdefault(min((label for _, label in group), key=lambda label: (counts[label], label)), []).append(
            group
        )
    stay, gone = [], []
    for label, own in sorted(by_class.items()):
        order = np.random.default_rng([seed, label]).permutation(len(own))
        ends = np.cumsum([len(own[i]) for i in order])
        wanted = max(MIN_IMAGES_PER_CLASS, round(share * int(ends[-1])))
        cut = int(np.abs(ends - wanted).argmin()) + 1
        gone += [entry for i in sorted(order[:cut]) for entry in own[i]]
        stay += [entry for i in sorted(order[cut:]) for entry in own[i]]
    return stay, gone


def check_split(split: str, entries: Sequence[LabelledFile], classes: Sequence[str], root: Path) -> None:
    """Refuses a split that lacks a class, or has too little to train on.

    Raises:
        ToolchainError: as said.
    """
    held = {label for _, label in entries}
    lacking = [name for index, name in enumerate(classes) if index not in held]
    if lacking:
        raise ToolchainError(
            f"too few images in {root}: {split} would have none of {', '.join(lacking)}; every class needs at least "
            "one image each for training, validation and test"
        )
    if split == "train" and len(entries) < 2 * len(classes):
        raise ToolchainError(f"{root} leaves {len(entries)} training images for {len(classes)} classes; at least two each are needed")  # fmt: skip


def _digest(
    root: Path, by_split: Mapping[Split, Sequence[LabelledFile]], classes: Sequence[str], hashes: Mapping[Path, str]
) -> str:
    total = hashlib.sha256(repr(tuple(classes)).encode())
    for split in SPLITS:
        for path, label in by_split[split]:
            name = path.relative_to(root).as_posix().encode(errors="surrogateescape")
            total.update(f"{split} {label} {hashes[path]} ".encode() + name)
    return total.hexdigest()
