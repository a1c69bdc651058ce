"""Draw the training, validation and test split of a dataset, class by class and without leakage.

Images that belong together (identical bytes, or one exposure group by the dataset's `group_pattern`) never end up in
two splits.
"""

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from toolchain.core.errors import ToolchainError
from toolchain.data.formats.folders.split_folders import SPLITS as SPLITS
from toolchain.data.formats.folders.split_folders import Split as Split

MIN_IMAGES_PER_CLASS = 1
LabelledFile = tuple[Path, int]  # file and class index


def group_files(
    files: Sequence[LabelledFile], hashes: Mapping[Path, str], pattern: str, groups: Mapping[Path, str]
) -> list[list[LabelledFile]]:
    """Group the files that must share a split: identical ones, those of one named group, and those that `pattern` puts together.

    Args:
        files: files with their class indices.
        hashes: content hash of each file.
        pattern: regular expression on file names whose first group names the exposure; "" for none.
        groups: the named group of a file, for files that have one.

    Returns:
        The groups; a file that belongs with no other is a group of its own.
    """
    if not files:
        return []
    keys: dict[str, int] = {}
    edges = []
    for row, (path, _) in enumerate(files):
        match = re.search(pattern, path.name) if pattern else None
        captured = [f"group {match[1]}"] if match and match[1] else []
        named = [f"named group {groups[path]}"] if path in groups else []
        for key in (hashes[path], *captured, *named):
            edges.append((row, len(files) + keys.setdefault(key, len(keys))))
    rows, columns = np.array(edges).T
    size = len(files) + len(keys)
    graph = coo_array((np.ones(len(edges), np.int8), (rows, columns)), shape=(size, size))
    together: dict[int, list[LabelledFile]] = {}
    for file, group in zip(files, connected_components(graph, directed=False)[1], strict=False):
        together.setdefault(int(group), []).append(file)
    return list(together.values())


def split_off(
    groups: Sequence[Sequence[LabelledFile]], share: float, seed: int
) -> tuple[list[LabelledFile], list[LabelledFile]]:
    """Split off `share` of every class, at least one image of it, at random by `seed`; a group is never divided.

    A group of several classes counts towards the rarest of them, which has the fewest images to choose from.

    Returns:
        The files that stay, and those that are split off.
    """
    counts = Counter(label for group in groups for _, label in group)
    groups_by_class: dict[int, list[Sequence[LabelledFile]]] = {}
    for group in groups:
        rarest = min((label for _, label in group), key=lambda label: (counts[label], label))
        groups_by_class.setdefault(rarest, []).append(group)
    kept, split = [], []
    for label, class_groups in sorted(groups_by_class.items()):
        order = np.random.default_rng([seed, label]).permutation(len(class_groups))
        sizes = np.cumsum([len(class_groups[i]) for i in order])
        target = max(MIN_IMAGES_PER_CLASS, round(share * int(sizes[-1])))
        cut = int(np.abs(sizes - target).argmin()) + 1
        split += [file for i in sorted(order[:cut]) for file in class_groups[i]]
        kept += [file for i in sorted(order[cut:]) for file in class_groups[i]]
    return kept, split


def check_split(
    split: str, files: Sequence[LabelledFile], classes: Sequence[str], root: Path, *, every_class: bool = True
) -> None:
    """Check that a split has every class, and that the training split has at least two images per class on average.

    Args:
        split: its name.
        files: its images with their class indices.
        classes: the names of all classes.
        root: folder of the dataset, for messages.
        every_class: False for a trained model, whose classes the images need not show.

    Raises:
        ToolchainError: it has not.
    """
    if not every_class:
        if len(files) < 2:
            raise ToolchainError(f"too few images in {root}: the {split} split would have {len(files)}")
        return
    labels = {label for _, label in files}
    missing = [name for index, name in enumerate(classes) if index not in labels]
    if missing:
        raise ToolchainError(
            f"too few images in {root}: the {split} split would have none of {', '.join(missing)}; every class needs at "
            "least one image each for training, validation and test"
        )
    if split == "train" and len(files) < 2 * len(classes):
        raise ToolchainError(
            f"too few images in {root}: {len(files)} are left for training {len(classes)} classes; at least two per class "
            "are needed"
        )
