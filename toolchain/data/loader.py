"""Make batches for the network: in order for evaluation; shuffled, augmented and made ahead of time for training."""

import os
from collections.abc import Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from toolchain.config.recipe import AugmentSpec
from toolchain.core.types import Preprocessing
from toolchain.data import augmentation
from toolchain.data.decoded_dataset import Dataset, Images
from toolchain.data.map_ahead import map_ahead

# threads that make batches ahead: one keeps up with training on two cores
DEFAULT_THREADS = 1 if (os.cpu_count() or 1) > 1 else 0


def normalise(pixels: Tensor, preprocess: Preprocessing) -> Tensor:
    """Turn pixels into the network's input exactly as `edge.run.normalise` does.

    Args:
        pixels: 0..255, [images, height, width] for gray or [images, height, width, 3] for rgb.
        preprocess: mean and standard deviation per channel, of pixels in 0..1.

    Returns:
        float32 [images, 3, height, width], channels last in memory.
    """
    if pixels.ndim == 3:
        pixels = pixels.unsqueeze(-1).expand(-1, -1, -1, 3)
    images, height, width, _ = pixels.shape
    std = torch.tensor(preprocess.std)
    scale, shift = torch.tensor(1 / 255, dtype=torch.float32) / std, torch.tensor(preprocess.mean) / std
    # whole image rows at a time: broadcasting over the last dimension, of size three, is six times slower
    lines = pixels.reshape(images, height, width * 3) * scale.repeat(width) - shift.repeat(width)
    return lines.view(images, height, width, 3).permute(0, 3, 1, 2)  # the kernels are fastest with channels last


def ordered_batches(images: Images, preprocess: Preprocessing, batch_size: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield all images in order, in batches of (float32 images [batch, 3, height, width], labels [batch])."""
    for start in range(0, len(images), batch_size):
        batch = slice(start, start + batch_size)
        yield normalise(images.pixels[batch], preprocess), images.labels[batch]


@dataclass(frozen=True)
class TrainingBatch:
    """The input of one training step."""

    images: Tensor  # float32 [batch, 3, height, width]
    soft_labels: Tensor  # float32 [batch, classes], each row adds up to 1
    loss_weights: Tensor  # float32 [batch]


def training_batches(
    data: Dataset, batch_size: int, *, seed: int, augment: AugmentSpec, workers: int = DEFAULT_THREADS
) -> Iterator[TrainingBatch]:
    """Yield one epoch of the training images, shuffled and augmented, made ahead in `workers` threads.

    Each batch has its own random generator, so the number of threads does not change the batches. A last batch of one
    image is left out: batch norm cannot train on it.

    Args:
        data: its training split is used.
        batch_size: images per batch.
        seed: decides the order of the images and the augmentation.
        augment: resolved augmentation (`augmentation.resolve`).
        workers: threads; 0 makes each batch when it is asked for.
    """
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(len(data.splits["train"]), generator=generator)
    batches = [rows for rows in torch.split(order, batch_size) if len(rows) > 1]
    seeds = torch.randint(2**62, (len(batches),), generator=generator).tolist()
    jobs = zip(batches, seeds, strict=True)
    if not workers:
        yield from (_make_batch(data, augment, rows, batch_seed) for rows, batch_seed in jobs)
        return
    yield from map_ahead(
        lambda job: _make_batch(data, augment, *job), jobs, threads=workers, ahead=workers,
        prepare_thread=lambda: torch.set_num_threads(1),
    )  # fmt: skip


def _make_batch(data: Dataset, augment: AugmentSpec, rows: Tensor, seed: int) -> TrainingBatch:
    generator, images = torch.Generator().manual_seed(seed), data.splits["train"]
    pixels, labels = images.pixels[rows], F.one_hot(images.labels[rows], len(data.classes)).float()
    labels = labels * images.loss_weights[rows, None]  # so that mixing images mixes their weights, too
    if any(vars(augment).values()):
        planes = pixels.unsqueeze(1) if pixels.ndim == 3 else pixels.permute(0, 3, 1, 2)
        blue_first = pixels.ndim == 4 and data.preprocess.order == "bgr"
        planes = planes.flip(1) if blue_first else planes  # augmentation knows which channel is red
        augmented = augmentation.transform(planes.float(), augment, generator)
        augmented, labels = augmentation.mix(augmented, labels, augment, generator)
        augmented = augmented.flip(1) if blue_first else augmented
        pixels = augmented.squeeze(1) if pixels.ndim == 3 else augmented.permute(0, 2, 3, 1)
    weights = labels.sum(1)
    return TrainingBatch(normalise(pixels, data.preprocess), labels / weights[:, None], weights)
