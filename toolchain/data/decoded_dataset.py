"""Decode a dataset into memory, at the network's input size, through a cache of pixels that survives runs.

Training must see the same pixels as the board, so images are decoded and resized by the functions of
`edge/run.py`, which travels in the bundle. The cache holds uint8 images and is keyed by the content of the files, so
that every run after the first starts at once.
"""

import dataclasses
import hashlib
import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import PIL
import torch
from torch import Tensor

from toolchain.config.dataset import Domain
from toolchain.core import files
from toolchain.core.types import Preprocessing
from toolchain.data import dataset_files
from toolchain.data.decoded_files import decode_files
from toolchain.data.splits import SPLITS, Split, check_split
from toolchain.edge import run, served_pixels

# only what decides pixels: a change elsewhere in the runner, such as to a message, does not retrain anything
DECODER_VERSION = (
    *(inspect.getsource(function) for function in (run.read_image, run.fit_size, run.normalise)),
    PIL.__version__,
)


@dataclass(frozen=True)
class Images:
    """One split in memory."""

    pixels: (
        Tensor  # uint8 [images, height, width], or [images, height, width, 3] in the order of the network's channels
    )
    labels: Tensor  # int64 [images]
    files: tuple[Path, ...]
    loss_weights: Tensor  # float32 [images]: weight of each image in the loss

    def __len__(self) -> int:
        return len(self.labels)

    def select(self, rows: Sequence[int]) -> "Images":
        """Return the images at `rows`, in that order."""
        indices = list(rows)
        return Images(
            self.pixels[indices],
            self.labels[indices],
            tuple(self.files[index] for index in indices),
            self.loss_weights[indices],
        )

    def extend(self, images: "Images") -> "Images":
        """Return these images with further ones after them."""
        return Images(
            torch.cat([self.pixels, images.pixels]),
            torch.cat([self.labels, images.labels]),
            self.files + images.files,
            torch.cat([self.loss_weights, images.loss_weights]),
        )

    def hash_each(self) -> list[bytes]:
        """Return the SHA-256 of each image's pixels, to find the same image elsewhere."""
        return [hashlib.sha256(image.tobytes()).digest() for image in self.pixels.numpy()]


@dataclass(frozen=True)
class Dataset:
    """A decoded dataset: all splits, and the rows that calibrate."""

    classes: tuple[str, ...]
    splits: Mapping[Split, Images]
    preprocess: Preprocessing
    digest: str  # over files, splits, input size and colour mode
    calibration_rows: tuple[int, ...]  # indices into the training split
    calibration_digest: str  # over the pixels of the calibration images
    skipped_files: tuple[str, ...] = ()  # corrupt files that were left out, where the domain allows it

    @property
    def example_input(self) -> Tensor:
        """Return zeros of the network's input shape, float32 [1, 3, height, width]."""
        return torch.zeros(1, 3, *self.preprocess.image_size)

    @property
    def calibration_images(self) -> Images:
        """Return the training images on which ranges are calibrated and gradients are collected."""
        return self.splits["train"].select(self.calibration_rows)


def pixel_cache_key(files_digest: str, preprocess: Preprocessing, on_corrupt: str) -> str:
    """Return the cache key of decoded pixels: the files, how they are fitted to the input, and the decoder's version."""
    key = (files_digest, preprocess.image_size, preprocess.mode, on_corrupt, DECODER_VERSION)
    if served_pixels.is_stretched(preprocess):
        return files.digest(*key)
    anyhow = dataclasses.replace(preprocess, mean=(), std=())  # which decide nothing before the pixels are normalised
    return files.digest(*key, anyhow, served_pixels.list_sources(preprocess))


def load(domain: Domain, preprocess: Preprocessing, cache: Path) -> Dataset:
    """List, split and decode a dataset; decoded pixels are kept under `cache`.

    Raises:
        ToolchainError: as `dataset_files.find_images`; or a file is corrupt and the domain says `on_corrupt = "fail"`.
    """
    listed = dataset_files.find_images(domain, cache)
    key = pixel_cache_key(listed.digest, preprocess, domain.on_corrupt)
    folder = cache / "pixels" / key
    with files.lock_folder(folder, wait=True):
        splits, skipped = {}, []
        for split in SPLITS:
            paths, labels = listed.files[split], listed.labels[split]
            pixels, corrupt = decode_files(paths, preprocess, folder / f"{split}.npy", domain.on_corrupt)
            readable = [i for i in range(len(paths)) if i not in corrupt]
            splits[split] = Images(
                torch.from_numpy(pixels),
                torch.tensor([labels[i] for i in readable]),
                tuple(paths[i] for i in readable),
                torch.ones(len(readable)),
            )
            check_split(
                split, [(paths[i], labels[i]) for i in readable], listed.classes, listed.root,
                every_class=domain.shows_every_class,
            )  # fmt: skip
            skipped += [str(paths[i]) for i in sorted(corrupt)]
    train = splits["train"]
    count = min(domain.calibration_images, len(train))
    sample = np.random.default_rng(domain.calibration_seed).permutation(len(train))[:count]
    rows = tuple(sorted(int(i) for i in sample))
    return Dataset(listed.classes, splits, preprocess, key, rows, _hash_pixels(train, rows), tuple(skipped))


def decode_at_size(data: Dataset, size: tuple[int, int], cache: Path) -> Dataset:
    """Decode the same images from their files at another size (height, width), as `decode_as`."""
    return decode_as(data, dataclasses.replace(data.preprocess, image_size=size), cache)


def decode_as(data: Dataset, preprocess: Preprocessing, cache: Path) -> Dataset:
    """Decode the same images from their files in another way; the pixels are kept under `cache`.

    Raises:
        ToolchainError: a file cannot be read any more.
    """
    key = pixel_cache_key(data.digest, preprocess, "fail")
    folder = cache / "pixels" / key
    splits = {}
    with files.lock_folder(folder, wait=True):
        for split, images in data.splits.items():
            pixels, _ = decode_files(images.files, preprocess, folder / f"{split}.npy", "fail")
            splits[split] = dataclasses.replace(images, pixels=torch.from_numpy(pixels))
    return dataclasses.replace(
        data,
        splits=splits,
        preprocess=preprocess,
        digest=key,
        calibration_digest=_hash_pixels(splits["train"], data.calibration_rows),
    )


def _hash_pixels(images: Images, rows: Sequence[int]) -> str:
    """Return the SHA-256 of the pixels of some images."""
    return hashlib.sha256(images.pixels[list(rows)].numpy().tobytes()).hexdigest()
