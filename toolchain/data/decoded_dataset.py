"""A domain in memory: its images decoded once into a cache that survives runs, further sets joined to them.

Pixels are prepared by the functions of `runner.py`, which travels in the bundle. The cache holds uint8 images at
the network's size, keyed by the content of the files, so that every run after the first starts at once.
"""

import dataclasses
import hashlib
import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import PIL
import torch
from torch import Tensor

from toolchain.config.dataset import Domain
from toolchain.core import files as records
from toolchain.core import progress
from toolchain.core.errors import ToolchainError
from toolchain.core.types import Preprocessing
from toolchain.data import image_folder
from toolchain.data.image_folder import SPLITS, Split
from toolchain.edge import run

# of the runner what makes pixels, so that another message of it trains nothing anew
DECODER_VERSION = (
    *(inspect.getsource(part) for part in (run.read_picture, run.fit_size, run.normalise)),
    PIL.__version__,
)


@dataclass(frozen=True)
class Images:
    """One split in memory."""

    pixels: Tensor  # uint8 [images, height, width] for gray, [images, height, width, 3] for rgb
    labels: Tensor  # int64 [images]
    files: tuple[Path, ...]
    loss_weights: Tensor  # float32 [images], of each in the loss

    def __len__(self) -> int:
        return len(self.labels)

    def select(self, rows: Sequence[int]) -> "Images":
        """Some of the images, in the order of `rows`."""
        picked = list(rows)
        return Images(
            self.pixels[picked],
            self.labels[picked],
            tuple(self.files[row] for row in picked),
            self.loss_weights[picked],
        )


@dataclass(frozen=True)
class Dataset:
    """A domain, decoded."""

    classes: tuple[str, ...]
    splits: Mapping[Split, Images]
    preprocess: Preprocessing
    digest: str  # of files, splits and preprocessing size and mode
    calibration_rows: tuple[int, ...]  # indices into the training split
    calibration_digest: str  # over their pixels
    skipped_files: tuple[str, ...] = ()  # corrupt files left out, where the domain allows it

    @property
    def example_input(self) -> Tensor:
        """An input of the network's shape, float32 [1, 3, height, width]."""
        return torch.zeros(1, 3, *self.preprocess.image_size)

    @property
    def calibration_images(self) -> Images:
        """The training images that ranges are drawn from and gradients are taken on."""
        return self.splits["train"].select(self.calibration_rows)


def pixel_cache_key(files_digest: str, preprocess: Preprocessing, on_corrupt: str) -> str:
    """Name of decoded pixels in the cache: the files, how they are decoded, and by what."""
    return records.digest(files_digest, preprocess.image_size, preprocess.mode, on_corrupt, DECODER_VERSION)


def load(domain: Domain, preprocess: Preprocessing, cache: Path) -> Dataset:
    """Finds, splits and decodes a domain's images; decoded pixels are kept under `cache`.

    Raises:
        ToolchainError: as `listing.find`; or a file is corrupt and the domain says `on_corrupt = "fail"`.
    """
    found = image_folder.find_images(domain, cache)
    key = pixel_cache_key(found.digest, preprocess, domain.on_corrupt)
    with records.lock_folder(cache / "pixels" / key, wait=True):
        splits, skipped = {}, []
        for split in SPLITS:
            path = cache / "pixels" / key / f"{split}.npy"
            pixels, bad = decode_files(found.files[split], preprocess, path, domain.on_corrupt)
            good = [i for i in range(len(found.files[split])) if i not in bad]
            labels = torch.tensor([found.labels[split][i] for i in good])
            files = tuple(found.files[split][i] for i in good)
            splits[split] = Images(torch.from_numpy(pixels), labels, files, torch.ones(len(good)))
            entries = [(found.files[split][i], found.labels[split][i]) for i in good]
            image_folder.check_split(split, entries, found.classes, found.root)
            skipped += [str(found.files[split][i]) for i in sorted(bad)]
    count = min(domain.calibration_images, len(splits["train"]))
    drawn = np.random.default_rng(domain.calibration_seed).permutation(len(splits["train"]))[:count]
    rows = sorted(int(i) for i in drawn)
    return Dataset(
        found.classes, splits, preprocess, key, tuple(rows), _drawn(splits["train"], rows), tuple(skipped)
    )  # fmt: skip


def decode_at_size(data: Dataset, size: tuple[int, int], cache: Path) -> Dataset:
    """The same images, decoded again from their files at another size (height, width); kept under `cache`.

    Raises:
        ToolchainError: a file cannot be read any more.
    """
    preprocess = dataclasses.replace(data.preprocess, image_size=size)
    key = pixel_cache_key(data.digest, preprocess, "fail")
    splits = {}
    with records.lock_folder(cache / "pixels" / key, wait=True):
        for split, images in data.splits.items():
            pixels, _ = decode_files(images.files, preprocess, cache / "pixels" / key / f"{split}.npy", "fail")
            splits[split] = dataclasses.replace(images, pixels=torch.from_numpy(pixels))
    drawn = _drawn(splits["train"], data.calibration_rows)
    return dataclasses.replace(data, splits=splits, preprocess=preprocess, digest=key, calibration_digest=drawn)


def _drawn(train: Images, rows: Sequence[int]) -> str:
    """Digest of the pixels of the calibration images."""
    return hashlib.sha256(train.pixels[list(rows)].numpy().tobytes()).hexdigest()


def decode_files(
    files: Sequence[Path], preprocess: Preprocessing, path: Path, on_corrupt: Literal["fail", "skip"]
) -> tuple[np.ndarray, set[int]]:
    """Pixels of the readable files, uint8 [files, height, width(, 3)], kept at `path`; and which ones are not readable.

    Raises:
        ToolchainError: a file is corrupt and `on_corrupt` is "fail", or no file can be read.
    """
    marks = path.with_suffix(".json")
    if marks.exists():
        return np.load(path, mmap_mode="c"), set(records.read_json(marks))
    rows, bad = [], set()
    with progress.show_bar(f"decode {path.stem}", len(files)) as bar:
        for index, file in enumerate(files):
            try:
                rows.append(run.fit_size(run.read_picture(file, preprocess.mode), preprocess.image_size))
            except run.Refused as reason:
                if on_corrupt == "fail":
                    raise ToolchainError(
                        f'{reason}; repair or remove it, or set on_corrupt = "skip" in the domain (--on-corrupt skip)'
                    ) from reason
                bad.add(index)
            bar.step()
    if not rows:
        raise ToolchainError(f"none of the {len(files)} images for {path.stem} can be read")
    with records.open_atomic(path) as out:
        np.save(out, np.stack(rows))
    records.write_json(marks, sorted(bad))
    return np.load(path, mmap_mode="c"), bad
