"""recover: pruned model, dense teacher -> small trained model, by distillation on the training images."""

import dataclasses
import time

from toolchain.config.job import Job
from toolchain.core import files, stage_cache
from toolchain.pruning.prune import PrunedModel
from toolchain.pruning.surgery import Surgery
from toolchain.training import loop, trained_model
from toolchain.training.finetune import FinetunedModel
from toolchain.training.input_size import UpsampledInputModel

VERSION = 3


def run(job: Job, pruned: PrunedModel, adapted: FinetunedModel) -> trained_model.TrainedModel:
    """Trains the pruned model back towards the dense one, for the epochs that its rounds have left.

    Without surgery, and with pictures of the dense model's own size, the dense model itself is the result.

    Args:
        pruned: trained in place.
        adapted: the dense model, the teacher; and the pictures at the size that the pruned model takes them.

    Raises:
        ToolchainError: training diverged.
    """
    recipe, dense = job.recipe, adapted.trained
    resized = isinstance(dense.model, UpsampledInputModel)
    if pruned.surgery == Surgery() and not resized:
        return dense
    spec = dataclasses.replace(recipe.recover, epochs=recipe.recover.epochs - len(pruned.history))
    # keyed by the plan itself: two targets that arrive at the same widths share the training; and by the weights that
    # are left, where they are not simply the dense model's
    left: list[object] = [] if pruned.key == dense.key else [pruned.key]
    left += [adapted.dataset.preprocess.image_size] if resized else []
    key = files.digest(
        VERSION, dense.key, pruned.surgery, spec, adapted.augment, recipe.balance, recipe.seed, *left
    )  # fmt: skip
    with stage_cache.open_stage(job.work, "recover", key) as stage:
        if stage.record is not None:
            return trained_model.load_trained_model(stage, pruned.model)
        started = time.monotonic()
        training_job = loop.TrainingJob(
            dataset=adapted.dataset, spec=spec, augment=adapted.augment, seed=recipe.seed + 1, label="recover",
            folder=stage.folder, balance=recipe.balance, teacher=dense.model,
        )  # fmt: skip
        training = loop.train(pruned.model, training_job)
        return trained_model.save_trained_model(stage, started, pruned.model, training, {})
