"""Recover the accuracy of a pruned model by distillation from the dense model, on the training images."""

import dataclasses
import time

from toolchain.config.job import Job
from toolchain.core import files, stage_cache
from toolchain.pruning.prune import PrunedModel
from toolchain.pruning.surgery import Surgery
from toolchain.training import loop
from toolchain.training.finetune import FinetunedModel
from toolchain.training.input_size import UpsampledInputModel
from toolchain.training.trained_model import TrainedModel, load_trained_model, save_trained_model

VERSION = 3


def run(job: Job, pruned: PrunedModel, finetuned: FinetunedModel) -> TrainedModel:
    """Train the pruned model with the dense one as teacher, for the epochs that the pruning rounds have left.

    Without surgery and at the dense model's own input size, the dense model itself is the result.

    Args:
        job: recipe and work folder.
        pruned: the model to train, in place.
        finetuned: the dense model, which is the teacher, and the dataset at the pruned model's input size.

    Raises:
        ToolchainError: training diverged.
    """
    recipe, dense = job.recipe, finetuned.trained
    resized = isinstance(dense.model, UpsampledInputModel)
    if pruned.surgery == Surgery() and not resized:
        return dense
    spec = dataclasses.replace(recipe.recover, epochs=recipe.recover.epochs - len(pruned.history))
    # The surgery itself is in the key, so that two targets that arrive at the same widths share the training. The
    # weights' own key is added only where they are not just a slice of the dense model's.
    more: list[object] = [] if pruned.key == dense.key else [pruned.key]
    more += [finetuned.dataset.preprocess.image_size] if resized else []
    key = files.digest(
        VERSION, dense.key, pruned.surgery, spec, finetuned.augment, recipe.balance, recipe.seed, *more
    )  # fmt: skip
    with stage_cache.open_stage(job.work, "recover", key) as stage:
        if stage.record is not None:
            return load_trained_model(stage, pruned.model)
        started = time.monotonic()
        training_job = loop.TrainingJob(
            dataset=finetuned.dataset, spec=spec, augment=finetuned.augment, seed=recipe.seed + 1, label="recover",
            folder=stage.folder, balance=recipe.balance, teacher=dense.model,
        )  # fmt: skip
        training = loop.train(pruned.model, training_job)
        return save_trained_model(stage, started, pruned.model, training, {})
