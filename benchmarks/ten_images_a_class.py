"""Fine-tuning against a linear probe on the same few training images, several draws, paired over the test images.

    python benchmarks/ten_images_a_class.py --recipe trashnet --data <folder> --weights <file>

Both are given the same training images and the same few validation images; the probe chooses its penalty on those,
fine-tuning its epoch. The test split is answered once a draw.
"""

import dataclasses
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
import typer

from toolchain.config import overrides, read_config
from toolchain.config.job import make_job
from toolchain.core import statistics
from toolchain.data import prepare
from toolchain.data.decoded_dataset import Dataset, Images
from toolchain.models import build
from toolchain.training import finetune, linear_probe, loop


def main(
    data: Annotated[str, typer.Option()],
    weights: Annotated[str, typer.Option()],
    recipe: str = "trashnet",
    images: int = 10,
    draws: int = 5,
    out: Path = Path("out"),
) -> None:
    """Prints test accuracy of both for every draw, and the mean difference with its interval."""
    chosen, domain = overrides.read_recipe(recipe, overrides.Flags(data=data, weights=weights))
    torch.set_flush_denormal(True)
    whole, _ = prepare.run(make_job(chosen, read_config.read_target("cpu"), domain, out))
    test = whole.splits["test"]
    tuned, frozen = [], []
    for draw in range(draws):
        few = drawn(whole, images, draw)
        one = dataclasses.replace(chosen, seed=draw, seeds=1)
        found = finetune.run(make_job(one, read_config.read_target("cpu"), domain, out), few)
        model, head, _ = build.build_with_new_head(one.model, len(whole.classes), seed=draw)
        fitted = linear_probe.fit(model, head, few)
        logits = linear_probe.extract_features(model, head, test, whole.preprocess) @ fitted.weight.T + fitted.bias
        frozen.append((logits.argmax(1) == test.labels).numpy())
        tuned.append((loop.predict(found.trained.model, test, whole.preprocess).argmax(1) == test.labels).numpy())
        print(f"draw {draw}: fine-tuned {tuned[-1].mean():.4f}, linear probe {frozen[-1].mean():.4f}", flush=True)
    gain = statistics.mean_over_repeats(np.stack(tuned).astype(float) - np.stack(frozen))
    print(
        f"mean of {draws} draws, {images} images a class: fine-tuned {np.mean(tuned):.4f}, linear probe {np.mean(frozen):.4f}; "
        f"gain {100 * gain.estimate:+.1f} points [{100 * gain.low:+.1f}, {100 * gain.high:+.1f}], {len(test)} test images"
    )


def drawn(whole: Dataset, count: int, draw: int) -> Dataset:
    """`count` images of every class for training, and as many for validation."""
    random = np.random.default_rng(draw)

    def some(images: Images) -> Images:
        labels = images.labels.numpy()
        rows = [
            row
            for label in range(len(whole.classes))
            for row in random.permutation(np.flatnonzero(labels == label))[:count]
        ]
        return images.select(sorted(int(row) for row in rows))

    splits = {**whole.splits, "train": some(whole.splits["train"]), "val": some(whole.splits["val"])}
    return dataclasses.replace(
        whole, splits=splits, digest=f"{whole.digest} {count} a class, draw {draw}", calibration_rows=()
    )


if __name__ == "__main__":
    typer.run(main)
