"""Prepare further datasets to be added to the training images.

Their classes are mapped to the domain's, images that also lie in validation or test are left out, and each image gets
a weight in the loss.
"""

import dataclasses
import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from toolchain.config.dataset import Domain
from toolchain.config.recipe import JoinSpec
from toolchain.core import files, registry
from toolchain.core.errors import ToolchainError
from toolchain.data import dataset_files
from toolchain.data.decoded_dataset import Dataset, Images, pixel_cache_key
from toolchain.data.decoded_files import decode_files
from toolchain.data.splits import LabelledFile


@dataclass(frozen=True)
class JoinedDataset:
    """A further dataset, ready to be added to the training images."""

    name: str
    images: Images
    digest: str
    dropped_classes: tuple[str, ...]  # its classes that have no counterpart in the domain
    leaked_images: int  # its images that are also in validation or test, and so were left out
    corrupt_files: int  # its files that cannot be read, and so were left out


def load(spec: JoinSpec, other: Domain, data: Dataset, cache: Path) -> JoinedDataset:
    """Decode a further dataset as `data` is decoded, with the class indices of `data`.

    Args:
        spec: the recipe's [[join]] entry.
        other: the further dataset.
        data: the dataset that it is to be added to.
        cache: folder of decoded pixels.

    Raises:
        ToolchainError: the label map leaves a class out, names one that does not exist, or maps none; or no images.
    """
    prefix = f"join {spec.domain!r}"
    if other.source == "folder" and not (spec.path or other.path):
        raise ToolchainError(
            f"{prefix}: its image folder is not known; give path in [[join]], or in the file of that domain"
        )
    by_class = dataset_files.list_by_class(dataclasses.replace(other, path=spec.path or other.path), cache)
    class_indices = map_labels(spec, tuple(by_class), data.classes, prefix)
    labelled = [(path, class_indices[name]) for name in class_indices for path in by_class[name]]
    sample = _sample_evenly_by_class(labelled, spec.images)
    content = hashlib.sha256("".join(files.sha256_file(path) for path, _ in sample).encode()).hexdigest()
    key = pixel_cache_key(content, data.preprocess, "skip")
    paths = [path for path, _ in sample]
    with files.lock_folder(cache / "pixels" / key, wait=True):
        pixels, corrupt = decode_files(paths, data.preprocess, cache / "pixels" / key / "joined.npy", "skip")
    labels = [label for row, (_, label) in enumerate(sample) if row not in corrupt]
    images = Images(
        torch.from_numpy(pixels),
        torch.tensor(labels),
        tuple(path for row, path in enumerate(paths) if row not in corrupt),
        torch.full((len(labels),), spec.weight),
    )
    held_out = {*data.splits["val"].hash_each(), *data.splits["test"].hash_each()}
    rows = [row for row, pixel_hash in enumerate(images.hash_each()) if pixel_hash not in held_out]
    if not rows:
        raise ToolchainError(
            f"{prefix}: all of its images are also in validation or test, so none is left to train on; remove this entry, "
            "or give it other images"
        )
    return JoinedDataset(
        name=spec.domain,
        images=images.select(rows),
        digest=files.digest(key, spec.weight, labels, rows),
        dropped_classes=tuple(sorted(set(by_class) - set(class_indices))),
        leaked_images=len(labels) - len(rows),
        corrupt_files=len(corrupt),
    )


def map_labels(spec: JoinSpec, joined_classes: Sequence[str], classes: Sequence[str], prefix: str) -> Mapping[str, int]:
    """Return the domain's class index for each class of the further dataset that has one.

    Args:
        spec: the label map, and whether classes without an entry may be dropped.
        joined_classes: class names of the further dataset.
        classes: class names of the domain.
        prefix: start of the error messages.

    Raises:
        ToolchainError: a class has no counterpart and `others` is "fail"; or the map names a class that does not exist.
    """
    for name, meaning in spec.labels.items():
        if name not in joined_classes:
            raise ToolchainError(f"{prefix}: labels names {name!r}; {registry.suggest(name, list(joined_classes))}")
        if meaning not in classes:
            raise ToolchainError(f"{prefix}: labels.{name} = {meaning!r}; {registry.suggest(meaning, list(classes))}")
    counterparts = {name: spec.labels.get(name, name) for name in joined_classes}
    unmapped = [name for name, counterpart in counterparts.items() if counterpart not in classes]
    if unmapped and spec.others == "fail":
        names = ", ".join(repr(name) for name in unmapped[:6]) + (" and more" if len(unmapped) > 6 else "")
        raise ToolchainError(
            f"{prefix}: the label map leaves out {len(unmapped)} of its {len(joined_classes)} classes ({names}); map each "
            f'to one of {", ".join(classes)} in labels, or set others = "drop" to leave their images out'
        )
    if len(unmapped) == len(counterparts):
        raise ToolchainError(
            f"{prefix}: none of its classes is a class of this domain; map them to {', '.join(classes)} in labels"
        )
    return {name: classes.index(counterpart) for name, counterpart in counterparts.items() if counterpart in classes}


def _sample_evenly_by_class(labelled: Sequence[LabelledFile], count: int) -> list[LabelledFile]:
    """Return at most `count` files, as many of each class as there are; the same ones every time; 0: all of them."""
    if not count or count >= len(labelled):
        return list(labelled)
    order = np.random.default_rng(0).permutation(len(labelled))
    seen: dict[int, int] = {}
    ranked = []
    for row in order:  # the n-th image of every class comes before the n+1-th of any
        label = labelled[row][1]
        seen[label] = seen.get(label, 0) + 1
        ranked.append((seen[label], int(row)))
    return [labelled[row] for row in sorted(row for _, row in sorted(ranked)[:count])]


def add_to_training(data: Dataset, joined: JoinedDataset) -> Dataset:
    """Return `data` with the further images after its own training images.

    Validation and test stay as they are, and so does calibration: its rows count from the start of the training split.
    """
    combined = data.splits["train"].extend(joined.images)
    return dataclasses.replace(
        data, splits={**data.splits, "train": combined}, digest=files.digest(data.digest, joined.digest)
    )
