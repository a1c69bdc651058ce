"""Batches of a dataset as the network takes them: in order to evaluate, shuffled and augmented ahead of time to train."""

import os
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from toolchain.config.recipe import AugmentSpec
from toolchain.core.types import Preprocessing
from toolchain.data import augmentation as augmentation
from toolchain.data.decoded_dataset import Dataset, Images

DEFAULT_THREADS = (
    1 if (os.cpu_count() or 1) > 1 else 0
)  # threads that make batches ahead; one keeps up with training on two cores


def normalise(pixels: Tensor, preprocess: Preprocessing) -> Tensor:
    """Pixels 0..255 to the network's float32 input [images, 3, height, width], as `runner.normalise` does it."""
    if pixels.ndim == 3:
        pixels = pixels.unsqueeze(-1).expand(-1, -1, -1, 3)
    images, height, width, _ = pixels.shape
    std = torch.tensor(preprocess.std)
    scale, shift = torch.tensor(1 / 255, dtype=torch.float32) / std, torch.tensor(preprocess.mean) / std
    # whole lines at a time: broadcasting three values over three values is six times slower
    lines = pixels.reshape(images, height, width * 3) * scale.repeat(width) - shift.repeat(width)
    return lines.view(images, height, width, 3).permute(0, 3, 1, 2)  # channels last in memory, as the kernels like it


def ordered_batches(images: Images, preprocess: Preprocessing, batch_size: int) -> Iterator[tuple[Tensor, Tensor]]:
    """All images in order, in batches of (float32 images [batch, 3, height, width], labels [batch])."""
    for start in range(0, len(images), batch_size):
        part = slice(start, start + batch_size)
        yield normalise(images.pixels[part], preprocess), images.labels[part]


@dataclass(frozen=True)
class TrainingBatch:
    """What one training step looks at."""

    images: Tensor  # float32 [batch, 3, height, width]
    soft_labels: Tensor  # float32 [batch, classes]: shares that add up to 1
    loss_weights: Tensor  # float32 [batch]


def training_batches(
    data: Dataset, batch_size: int, *, seed: int, augment: AugmentSpec, workers: int = DEFAULT_THREADS
) -> Iterator[TrainingBatch]:
    """One epoch of the training images, shuffled and augmented, made ahead in `workers` threads.

    Each batch draws from a generator of its own, so the number of threads changes nothing. A last batch of one image
    is left out: batch norm cannot train on it.
    """
    random = torch.Generator().manual_seed(seed)
    order = torch.randperm(len(data.splits["train"]), generator=random)
    parts = [rows for rows in torch.split(order, batch_size) if len(rows) > 1]
    seeds = torch.randint(2**62, (len(parts),), generator=random).tolist()
    jobs = zip(parts, seeds, strict=True)
    if not workers:
        yield from (_batch(data, augment, *job) for job in jobs)
        return
    with ThreadPoolExecutor(workers, "batches", torch.set_num_threads, (1,)) as pool:
        ahead: deque[Future[TrainingBatch]] = deque()
        try:
            for job in jobs:
                ahead.append(pool.submit(_batch, data, augment, *job))
                if len(ahead) > workers:
                    yield ahead.popleft().result()
            while ahead:
                yield ahead.popleft().result()
        finally:
            pool.shutdown(cancel_futures=True)


def _batch(data: Dataset, augment: AugmentSpec, rows: Tensor, seed: int) -> TrainingBatch:
    random, images = torch.Generator().manual_seed(seed), data.splits["train"]
    pixels, wanted = images.pixels[rows], F.one_hot(images.labels[rows], len(data.classes)).float()
    wanted = wanted * images.loss_weights[rows, None]  # blended with the labels where images are blended
    if any(vars(augment).values()):
        planes = pixels.unsqueeze(1) if pixels.ndim == 3 else pixels.permute(0, 3, 1, 2)
        changed, wanted = augmentation.mix(
            augmentation.transform(planes.float(), augment, random), wanted, augment, random
        )
        pixels = changed.squeeze(1) if pixels.ndim == 3 else changed.permute(0, 2, 3, 1)
    weights = wanted.sum(1)
    return TrainingBatch(normalise(pixels, data.preprocess), wanted / weights[:, None], weights)
