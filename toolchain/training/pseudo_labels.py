"""Images without labels get the classes that the dense model predicts, so that pruning and quantization can learn from it.

In place of labelled images, accuracy then is agreement with the dense model. Beside them, the images join the training split.
"""

import dataclasses
from pathlib import Path

import torch

from toolchain.config.job import Job
from toolchain.core import files, progress
from toolchain.data import decoded_dataset, unlabelled_images
from toolchain.data.decoded_dataset import Dataset, Images
from toolchain.data.decoded_files import decode_files
from toolchain.training import loop
from toolchain.training.finetune import FinetunedModel

VERSION = 1


def run(job: Job, data: Dataset, dense: FinetunedModel) -> tuple[Dataset, FinetunedModel]:
    """Return the user's dataset and the dense model with the datasets in which images without labels have its predictions.

    Args:
        job: names the folder of images without labels; without one, all is returned as it is.
        data: the user's dataset, which is reported; it changes only where it has no labels.
        dense: the model, not changed, with the dataset that later steps train on.

    Raises:
        ToolchainError: there are no images in the folder, or one is corrupt and the domain says `on_corrupt = "fail"`.
    """
    if not job.domain.unlabelled:
        return data, dense
    dataset = _extend_training(job, dense) if job.domain.has_labels else _label_all(dense)
    # the later steps' keys grow from the dense model's, which does not depend on these images
    trained = dataclasses.replace(dense.trained, key=files.digest(VERSION, dense.trained.key, dataset.digest))
    return data if job.domain.has_labels else dataset, dataclasses.replace(dense, trained=trained, dataset=dataset)


def list_notes(job: Job, dense: FinetunedModel) -> list[str]:
    """Return what the report says about images without labels; nothing where there are none."""
    if not job.domain.unlabelled:
        return []
    if job.domain.has_labels:
        return [
            f"images without labels in {job.domain.unlabelled} joined the training split, with the dense model's predictions"
        ]
    return [
        f"there are no labels: accuracy is agreement with the dense model, on {len(dense.dataset.splits['test'])} test images. "
        "What the dense model itself gets wrong takes labelled images (--data)"
    ]


def _label_all(dense: FinetunedModel) -> Dataset:
    dataset = dense.dataset
    splits = {
        split: dataclasses.replace(images, labels=_predict(dense, images)) for split, images in dataset.splits.items()
    }
    shown = len(set(torch.cat([images.labels for images in splits.values()]).tolist()))
    progress.log(
        f"no labels: {sum(map(len, splits.values())):,} images have the dense model's predictions as labels ({shown} of "
        f"{len(dataset.classes)} classes); accuracy is agreement with it"
    )
    return dataclasses.replace(dataset, splits=splits, digest=files.digest(dataset.digest, dense.trained.key))


def _extend_training(job: Job, dense: FinetunedModel) -> Dataset:
    dataset, domain = dense.dataset, job.domain
    paths = unlabelled_images.list_files(Path(domain.unlabelled))
    hashes = files.digest([files.sha256_file(path) for path in paths])
    key = decoded_dataset.pixel_cache_key(hashes, dataset.preprocess, domain.on_corrupt)
    folder = job.images / "pixels" / key
    with files.lock_folder(folder, wait=True):
        pixels, corrupt = decode_files(paths, dataset.preprocess, folder / "unlabelled.npy", domain.on_corrupt)
    readable = tuple(path for row, path in enumerate(paths) if row not in corrupt)
    count = len(pixels)
    images = Images(torch.from_numpy(pixels), torch.zeros(count, dtype=torch.int64), readable, torch.ones(count))
    labelled = {pixel_hash for split in dataset.splits.values() for pixel_hash in split.hash_each()}
    rows = [row for row, pixel_hash in enumerate(images.hash_each()) if pixel_hash not in labelled]
    extra = images.select(rows)
    progress.log(
        f"no labels: {len(extra):,} images of {domain.unlabelled} join the training split for distillation"
        + (
            f"; {count - len(rows):,} are left out, because they are among the labelled ones"
            if len(rows) < count
            else ""
        )
    )
    if not rows:
        return dataset
    extended = dataset.splits["train"].extend(dataclasses.replace(extra, labels=_predict(dense, extra)))
    return dataclasses.replace(
        dataset,
        splits={**dataset.splits, "train": extended},
        digest=files.digest(dataset.digest, key, dense.trained.key),
    )


def _predict(dense: FinetunedModel, images: Images) -> torch.Tensor:
    return loop.predict(dense.trained.model, images, dense.dataset.preprocess).argmax(1)
