"""adapt: pretrained model, domain -> fine-tuned dense model, the accuracy reference of all that follows."""

import dataclasses
import time
from pathlib import Path

from toolchain import loop, models, progress, records
from toolchain.data import Dataset
from toolchain.values import Recipe

VERSION = 2


def run(recipe: Recipe, data: Dataset, work: Path) -> tuple[loop.Trained, str]:
    """Fine-tunes the recipe's model on the domain's training images.

    Returns:
        the dense model and the name of its head.

    Raises:
        ToolchainError: the model or its weights cannot be had, or training diverged.
    """
    weights = models.weights_digest(recipe.model)
    key = records.digest(
        VERSION,
        data.digest,
        data.preprocess,
        dataclasses.replace(recipe.model, weights=""),
        weights,
        recipe.adapt,
        recipe.augment,
        recipe.seed,
    )
    with records.stage(work, "adapt", key) as stage:
        if stage.figures is not None:
            model = models.architecture(recipe.model, len(data.classes))
            return loop.restored(stage, model), models.head_of(model, len(data.classes))
        started = time.monotonic()
        model, head, loaded = models.build(recipe.model, len(data.classes), seed=recipe.seed)
        progress.say(f"adapt: {loaded}")
        job = loop.Job(
            data=data, spec=recipe.adapt, augment=recipe.augment, seed=recipe.seed, label="adapt", folder=stage.folder, head=head
        )  # fmt: skip
        training = loop.train(model, job)
        return loop.store(stage, started, model, training, {"weights": loaded}), head
