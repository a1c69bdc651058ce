"""Further sets mixed into the training images: their classes mapped, what leaks left out, weighted in the loss."""

import dataclasses
import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from toolchain.config.dataset import Domain
from toolchain.config.recipe import JoinSpec
from toolchain.core import files as records
from toolchain.core import registry
from toolchain.core.errors import ToolchainError
from toolchain.data import image_folder
from toolchain.data.decoded_dataset import Dataset, Images, decode_files, pixel_cache_key


@dataclass(frozen=True)
class JoinedDataset:
    """One further set, ready to be mixed in."""

    name: str
    images: Images
    digest: str
    dropped_classes: tuple[str, ...]  # its classes that mean nothing here
    leaked_images: int  # pictures of it that are also in validation or test, and so were left out
    corrupt_files: int  # files of it that cannot be read


def load(spec: JoinSpec, other: Domain, data: Dataset, cache: Path) -> JoinedDataset:
    """Decodes a further set as `data` is decoded, with this domain's classes.

    Raises:
        ToolchainError: the label map leaves a class out, names one that is not there, or leads to none; no images.
    """
    where = f"join {spec.domain!r}"
    if other.source == "folder" and not (spec.path or other.path):
        raise ToolchainError(
            f"{where}: where its images are is not said; give path in [[join]], or in the domain's own file"
        )
    found = image_folder.list_by_class(dataclasses.replace(other, path=spec.path or other.path), cache)
    labels = map_labels(spec, tuple(found), data.classes, where)
    entries = _drawn([(path, labels[name]) for name in labels for path in found[name]], spec.images)
    content = hashlib.sha256("".join(records.sha256_file(path) for path, _ in entries).encode()).hexdigest()
    key = pixel_cache_key(content, data.preprocess, "skip")
    with records.lock_folder(cache / "pixels" / key, wait=True):
        files = [path for path, _ in entries]
        pixels, bad = decode_files(files, data.preprocess, cache / "pixels" / key / "joined.npy", "skip")
    good = [label for row, (_, label) in enumerate(entries) if row not in bad]
    files = [path for row, path in enumerate(files) if row not in bad]
    images = Images(torch.from_numpy(pixels), torch.tensor(good), tuple(files), torch.full((len(good),), spec.weight))
    held = {_hash(picture) for split in ("val", "test") for picture in data.splits[split].pixels.numpy()}
    rows = [row for row, picture in enumerate(pixels) if _hash(picture) not in held]
    if not rows:
        raise ToolchainError(f"{where}: all of its pictures are also in validation or test; it brings nothing new")
    digest = records.digest(key, spec.weight, good, rows)
    left = tuple(sorted(set(found) - set(labels)))
    return JoinedDataset(spec.domain, images.select(rows), digest, left, len(good) - len(rows), len(bad))


def _hash(picture: np.ndarray) -> bytes:
    return hashlib.sha256(picture.tobytes()).digest()


def map_labels(spec: JoinSpec, theirs: Sequence[str], ours: Sequence[str], where: str) -> Mapping[str, int]:
    """Index of our class for each of their classes that has one.

    Raises:
        ToolchainError: a class of theirs has none and `others` is "fail"; or the map names what is not there.
    """
    for name, meaning in spec.labels.items():
        if name not in theirs:
            raise ToolchainError(f"{where}: labels names {name!r}; {registry.suggest(name, list(theirs))}")
        if meaning not in ours:
            raise ToolchainError(f"{where}: labels.{name} = {meaning!r}; {registry.suggest(meaning, list(ours))}")
    meant = {name: spec.labels.get(name, name) for name in theirs}
    lacking = [name for name, meaning in meant.items() if meaning not in ours]
    if lacking and spec.others == "fail":
        named = ", ".join(repr(name) for name in lacking[:6]) + (" and more" if len(lacking) > 6 else "")
        raise ToolchainError(
            f"{where}: the label map leaves out {len(lacking)} of its {len(theirs)} classes ({named}); give each one of "
            f'{", ".join(ours)} in labels, or set others = "drop" to do without them'
        )
    if len(lacking) == len(meant):
        raise ToolchainError(f"{where}: none of its classes has a meaning here; give them in labels")
    return {name: ours.index(meaning) for name, meaning in meant.items() if meaning in ours}


def _drawn(entries: Sequence[tuple[Path, int]], most: int) -> list[tuple[Path, int]]:
    """At most `most` entries, evenly from the classes, the same ones every time; 0: all."""
    if not most or most >= len(entries):
        return list(entries)
    order = np.random.default_rng(0).permutation(len(entries))
    turn: dict[int, int] = {}
    ranked = []
    for row in order:  # the n-th picture of every class before the n+1-th of any
        label = entries[row][1]
        turn[label] = turn.get(label, 0) + 1
        ranked.append((turn[label], int(row)))
    return [entries[row] for row in sorted(row for _, row in sorted(ranked)[:most])]


def add_to_training(data: Dataset, joined: JoinedDataset) -> Dataset:
    """`data` with the further set behind its own training images; validation, test and calibration stay its own."""
    own, extra = data.splits["train"], joined.images
    both = Images(
        torch.cat([own.pixels, extra.pixels]),
        torch.cat([own.labels, extra.labels]),
        own.files + extra.files,
        torch.cat([own.loss_weights, extra.loss_weights]),
    )
    return dataclasses.replace(
        data, splits={**data.splits, "train": both}, digest=records.digest(data.digest, joined.digest)
    )
