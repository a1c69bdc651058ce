"""Images a second of our training, from an image folder through the cache, against a loop over tensors in memory.

    python benchmarks/training_throughput.py --recipe trashnet --data <folder> --weights <file>

The hand-written loop holds the finished float input in memory, picks batches by index and does what any training must:
forward, loss, backward, step. Ours reads the mapped cache, augments, normalises, clips, and keeps its books. Epochs of
the two alternate in one process after a first one of each; the ratio is that of the medians, and is also given without
augmentation.
"""

import dataclasses
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import torch
import torch.nn.functional as F
import typer

from toolchain.config import overrides, read_config
from toolchain.config.job import make_job
from toolchain.config.recipe import AugmentSpec, Recipe
from toolchain.core import progress
from toolchain.data import loader, prepare
from toolchain.data.decoded_dataset import Dataset
from toolchain.models import build
from toolchain.training import loop
from toolchain.training.training_state import TrainingState


def main(
    data: Annotated[str, typer.Option()],
    weights: Annotated[str, typer.Option()],
    recipe: str = "trashnet",
    epochs: int = 5,
    most: int = 2000,
    out: Path = Path("out"),
) -> None:
    """Prints images a second of both loops and their ratio."""
    chosen, domain = overrides.read_recipe(recipe, overrides.Flags(data=data, weights=weights))
    torch.set_flush_denormal(True)
    whole, _ = prepare.run(make_job(chosen, read_config.read_target("cpu"), domain, out))
    train = whole.splits["train"]
    few = (
        dataclasses.replace(whole, splits={**whole.splits, "train": train.select(range(min(most, len(train))))})
        if len(train) > most
        else whole
    )
    count = len(few.splits["train"])
    loops = {
        "in memory": by_hand(chosen, few),
        "ours": ours(chosen, few, chosen.augment),
        "ours, no augmentation": ours(chosen, few, AugmentSpec()),
    }
    seconds: dict[str, list[float]] = {name: [] for name in loops}
    for epoch in range(epochs + 1):
        for name, run in loops.items():
            started = time.perf_counter()
            run()
            if epoch:  # the first of each is cold
                seconds[name].append(time.perf_counter() - started)
                print(f"epoch {epoch}, {name}: {count / seconds[name][-1]:.1f} images/s", flush=True)
    middle = {name: statistics.median(took) for name, took in seconds.items()}
    for name in list(loops)[1:]:
        ratio = [a / b for a, b in zip(seconds["in memory"], seconds[name], strict=True)]
        print(
            f"{name}: {middle['in memory'] / middle[name]:.3f} of the loop over tensors in memory "
            f"(epochs {min(ratio):.3f} to {max(ratio):.3f}), {count} images, {epochs} epochs, {torch.get_num_threads()} threads"
        )


def by_hand(recipe: Recipe, data: Dataset) -> Callable[[], None]:
    """An epoch of the loop anybody would write first."""
    model, _, _ = build.build_with_new_head(recipe.model, len(data.classes), seed=0)
    model = model.to(memory_format=torch.channels_last).train()  # type: ignore[call-overload]
    optimizer = torch.optim.AdamW(model.parameters(), lr=recipe.adapt.learning_rate)
    train = data.splits["train"]
    images, labels = loader.normalise(train.pixels, data.preprocess), train.labels

    def epoch() -> None:
        for rows in torch.randperm(len(labels)).split(recipe.adapt.batch_size):
            batch = images[rows].contiguous(memory_format=torch.channels_last)
            loss = F.cross_entropy(model(batch), labels[rows], label_smoothing=recipe.adapt.label_smoothing)
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()

    return epoch


def ours(recipe: Recipe, data: Dataset, augment: AugmentSpec) -> Callable[[], None]:
    """An epoch of the toolchain's own loop, without validation."""
    model, head, _ = build.build_with_new_head(recipe.model, len(data.classes), seed=0)
    model = model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    job = loop.TrainingJob(
        dataset=data, spec=recipe.adapt, augment=augment, seed=0, label="", folder=Path("unused"), head=head
    )
    state = TrainingState(model, recipe.adapt, 1000, Path("unused"))
    state.epoch = recipe.adapt.freeze_epochs  # past the epochs in which only the head learns

    def epoch() -> None:
        loop.train_epoch(model, job, state, None, progress.ProgressBar("", 0))

    return epoch


if __name__ == "__main__":
    typer.run(main)
