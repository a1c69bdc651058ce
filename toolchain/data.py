"""Image folders to tensors: found, checked, split, decoded once into a cache, augmented in batches.

Pixels are prepared by the functions of `runner.py`, which travels in the bundle. The cache holds uint8 images at
the network's size, keyed by the content of the files, so that every run after the first starts at once.
"""

import hashlib
import importlib
import math
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import PIL
import torch
import torch.nn.functional as F
from torch import Tensor

from toolchain import progress, records, runner
from toolchain.errors import ToolchainError
from toolchain.values import AugmentSpec, Domain, Preprocess

Split = Literal["train", "val", "test"]
SPLITS: tuple[Split, ...] = ("train", "val", "test")
SUFFIXES = {".png", ".jpg", ".jpeg", ".bmp", ".webp", ".tif", ".tiff", ".gif", ".pgm", ".ppm"}
FEWEST_A_SPLIT = 1


@dataclass(frozen=True)
class Listing:
    """The files of a domain by split, with their class indices; nothing decoded yet."""

    classes: tuple[str, ...]
    files: Mapping[Split, Sequence[Path]]
    labels: Mapping[Split, Sequence[int]]
    digest: str  # over relative names and bytes of all files, their classes and splits


@dataclass(frozen=True)
class Images:
    """One split in memory."""

    pixels: Tensor  # uint8 [images, height, width] for gray, [images, height, width, 3] for rgb
    labels: Tensor  # int64 [images]
    files: tuple[Path, ...]

    def __len__(self) -> int:
        return len(self.labels)


@dataclass(frozen=True)
class Dataset:
    """A domain, decoded."""

    classes: tuple[str, ...]
    splits: Mapping[Split, Images]
    preprocess: Preprocess
    digest: str  # of files, splits and preprocessing size and mode
    calibration: tuple[int, ...]  # indices into the training split
    calibration_digest: str  # over their pixels
    skipped: tuple[str, ...] = ()  # corrupt files left out, where the domain allows it


def listing(domain: Domain, cache: Path) -> Listing:
    """Finds the images and decides the splits.

    Raises:
        ToolchainError: no folder, no images, a class without images, classes that differ between splits, or fewer
            images than the splits need.
    """
    root = _root(domain, cache)
    given = [split for split in SPLITS if (root / split).is_dir()]
    if given and "train" not in given:
        raise ToolchainError(f"{root} has {', '.join(given)}/ but no train/; give all of train/ val/ test/, or none")
    sources: dict[str, dict[str, list[Path]]] = (
        {split: _scan(root / split) for split in given} if given else {"all": _scan(root)}
    )
    classes = _classes(domain, root, sources)
    entries = {
        name: [(path, classes.index(label)) for label in classes for path in found[label]]
        for name, found in sources.items()
    }
    whole = entries.pop("all", None) or entries["train"]
    by_split: dict[Split, list[tuple[Path, int]]] = {"train": whole}
    shares: tuple[tuple[Split, float], ...] = (("test", domain.test_share), ("val", domain.validation_share))
    for split, share in shares:
        if split in entries:
            by_split[split] = entries[split]
        else:
            by_split["train"], by_split[split] = _stratified(by_split["train"], share, domain.split_seed)
    for split in SPLITS:
        _check_split(split, by_split[split], classes, root)
    return Listing(
        classes,
        {split: [path for path, _ in by_split[split]] for split in SPLITS},
        {split: [label for _, label in by_split[split]] for split in SPLITS},
        _digest(root, by_split, classes),
    )


def _root(domain: Domain, cache: Path) -> Path:
    if domain.source != "folder":
        folder = cache / domain.source
        with records.locked(folder, wait=True):
            room = importlib.import_module(f"toolchain.sources.{domain.source}")
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


def _scan(folder: Path) -> dict[str, list[Path]]:
    names = sorted(p for p in folder.iterdir() if p.is_dir() and not p.name.startswith("."))
    return {p.name: sorted(f for f in p.rglob("*") if f.suffix.lower() in SUFFIXES and f.is_file()) for p in names}


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


def _stratified(
    entries: Sequence[tuple[Path, int]], share: float, seed: int
) -> tuple[list[tuple[Path, int]], list[tuple[Path, int]]]:
    """Splits off `share` of every class, at least one image of it, at random by `seed`."""
    stay, gone = [], []
    for label in sorted({label for _, label in entries}):
        own = [entry for entry in entries if entry[1] == label]
        order = np.random.default_rng([seed, label]).permutation(len(own))
        cut = max(FEWEST_A_SPLIT, round(share * len(own)))
        gone += [own[i] for i in sorted(order[:cut])]
        stay += [own[i] for i in sorted(order[cut:])]
    return stay, gone


def _check_split(split: str, entries: Sequence[tuple[Path, int]], classes: Sequence[str], root: Path) -> None:
    held = {label for _, label in entries}
    lacking = [name for index, name in enumerate(classes) if index not in held]
    if lacking:
        raise ToolchainError(
            f"too few images in {root}: {split} would have none of {', '.join(lacking)}; every class needs at least "
            "one image each for training, validation and test"
        )
    if split == "train" and len(entries) < 2 * len(classes):
        raise ToolchainError(f"{root} leaves {len(entries)} training images for {len(classes)} classes; at least two each are needed")  # fmt: skip


def _digest(root: Path, by_split: Mapping[Split, Sequence[tuple[Path, int]]], classes: Sequence[str]) -> str:
    total = hashlib.sha256(repr(tuple(classes)).encode())
    for split in SPLITS:
        for path, label in by_split[split]:
            name = path.relative_to(root).as_posix().encode(errors="surrogateescape")
            total.update(f"{split} {label} {records.sha256_file(path)} ".encode() + name)
    return total.hexdigest()


def load(domain: Domain, preprocess: Preprocess, cache: Path) -> Dataset:
    """Finds, splits and decodes a domain's images; decoded pixels are kept under `cache`.

    Raises:
        ToolchainError: as `listing`; or a file is corrupt and the domain says `on_corrupt = "fail"`.
    """
    found = listing(domain, cache)
    decoder = records.sha256_file(Path(runner.__file__)), PIL.__version__
    key = records.digest(found.digest, preprocess.image_size, preprocess.mode, domain.on_corrupt, decoder)
    with records.locked(cache / "pixels" / key, wait=True):
        splits, skipped = {}, []
        for split in SPLITS:
            pixels, bad = _decoded(found.files[split], preprocess, cache / "pixels" / key / f"{split}.npy", domain)
            good = [i for i in range(len(found.files[split])) if i not in bad]
            labels = torch.tensor([found.labels[split][i] for i in good])
            splits[split] = Images(torch.from_numpy(pixels), labels, tuple(found.files[split][i] for i in good))
            entries = [(found.files[split][i], found.labels[split][i]) for i in good]
            _check_split(split, entries, found.classes, Path(domain.path))
            skipped += [str(found.files[split][i]) for i in sorted(bad)]
    count = min(domain.calibration_images, len(splits["train"]))
    drawn = np.random.default_rng(domain.calibration_seed).permutation(len(splits["train"]))[:count]
    rows = sorted(int(i) for i in drawn)
    drawn_digest = hashlib.sha256(splits["train"].pixels[rows].numpy().tobytes()).hexdigest()
    return Dataset(found.classes, splits, preprocess, key, tuple(rows), drawn_digest, tuple(skipped))


def _decoded(files: Sequence[Path], preprocess: Preprocess, path: Path, domain: Domain) -> tuple[np.ndarray, set[int]]:
    marks = path.with_suffix(".json")
    if marks.exists():
        return np.load(path, mmap_mode="c"), set(records.read_json(marks))
    rows, bad = [], set()
    with progress.bar(f"decode {path.stem}", len(files)) as bar:
        for index, file in enumerate(files):
            try:
                rows.append(runner.fit_size(runner.read_picture(file, preprocess.mode), preprocess.image_size))
            except runner.Refused as reason:
                if domain.on_corrupt == "fail":
                    raise ToolchainError(
                        f'{reason}; repair or remove it, or set on_corrupt = "skip" in the domain (--on-corrupt skip)'
                    ) from reason
                bad.add(index)
            bar.step()
    if not rows:
        raise ToolchainError(f"none of the {len(files)} images for {path.stem} can be read")
    with records.writing(path) as out:
        np.save(out, np.stack(rows))
    records.write_json(marks, sorted(bad))
    return np.load(path, mmap_mode="c"), bad


def normalise(pixels: Tensor, preprocess: Preprocess) -> Tensor:
    """uint8 pixels to the network's float32 input [images, 3, height, width], as `runner.normalise` does it."""
    channels = pixels.unsqueeze(-1).expand(-1, -1, -1, 3) if pixels.ndim == 3 else pixels
    std = torch.tensor(preprocess.std)
    scale, shift = torch.tensor(1 / 255, dtype=torch.float32) / std, torch.tensor(preprocess.mean) / std
    return (channels * scale - shift).permute(0, 3, 1, 2)  # channels last in memory, as the kernels like it


def batches(
    images: Images,
    preprocess: Preprocess,
    batch_size: int,
    *,
    seed: int | None = None,
    augment: AugmentSpec | None = None,
) -> Iterator[tuple[Tensor, Tensor]]:
    """Batches of (float32 images [batch, 3, height, width], labels [batch]).

    With a seed: shuffled, augmented, and a last batch of one image left out (batch norm cannot train on it);
    without: in order, all of them.
    """
    if seed is None:
        for start in range(0, len(images), batch_size):
            part = slice(start, start + batch_size)
            yield normalise(images.pixels[part], preprocess), images.labels[part]
        return
    random = torch.Generator().manual_seed(seed)
    for rows in torch.split(torch.randperm(len(images), generator=random), batch_size):
        if len(rows) > 1:
            pixels = normalise(images.pixels[rows], preprocess)
            yield (augmented(pixels, augment, random) if augment else pixels), images.labels[rows]


def augmented(images: Tensor, spec: AugmentSpec, random: torch.Generator) -> Tensor:
    """Random flips, shifts, zooms, rotations and brightness for each image on its own; edges are repeated."""
    count = len(images)

    def draw(reach: float) -> Tensor:
        return (torch.rand(count, generator=random) * 2 - 1) * reach

    for wanted, dimension in ((spec.horizontal_flip, 3), (spec.vertical_flip, 2)):
        if wanted:
            chosen = torch.rand(count, generator=random) < 0.5
            images = torch.where(chosen[:, None, None, None], images.flip(dimension), images)
    if spec.shift or spec.scale or spec.rotate_degrees:
        angle, zoom = draw(math.radians(spec.rotate_degrees)), 1 + draw(spec.scale)
        ratio = images.shape[2] / images.shape[3]
        cos, sin = angle.cos() * zoom, angle.sin() * zoom
        rows = [cos, -sin * ratio, draw(2 * spec.shift), sin / ratio, cos, draw(2 * spec.shift)]
        grid = F.affine_grid(torch.stack(rows, 1).view(-1, 2, 3), list(images.shape), align_corners=False)
        images = F.grid_sample(images, grid, padding_mode="border", align_corners=False)
    if spec.brightness:
        gain, offset = 1 + draw(spec.brightness), draw(spec.brightness)
        images = images * gain[:, None, None, None] + offset[:, None, None, None]
    return images.contiguous(memory_format=torch.channels_last)
