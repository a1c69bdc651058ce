"""sparsify: dense model -> the same, its unimportant channels made small, to be ranked and cut in its place.

The dense model stays what accuracy is measured from, and the teacher. Without `prune.sparsity` nothing is done.
"""

import copy
import dataclasses
import math
import time

from toolchain.config.job import Job
from toolchain.config.recipe import Recipe, TrainSpec
from toolchain.core import files, progress, stage_cache
from toolchain.models import profile
from toolchain.pruning import search_space, sparsity_penalty
from toolchain.training import loop, trained_model
from toolchain.training.finetune import FinetunedModel

VERSION = 1
DEFAULT_EPOCH_SHARE = 0.5  # of recover's epochs, where the recipe does not say how many


def run(job: Job, adapted: FinetunedModel) -> trained_model.TrainedModel:
    """Trains the dense model with a penalty on the groups of channels that pruning may narrow.

    Args:
        adapted: the dense model; left as it was.

    Raises:
        ToolchainError: training diverged, or the model cannot be traced for pruning.
    """
    recipe, target, image = job.recipe, job.target, adapted.dataset.example_input
    dense, asked = adapted.trained, recipe.prune
    if asked.sparsity == 0 or asked.ratio == 0:
        return dense
    spec = _spec(recipe)
    key = files.digest(
        VERSION, dense.key, asked.sparsity, asked.protect, target.alignment, spec, adapted.augment, recipe.balance,
        recipe.seed,
    )  # fmt: skip
    model = copy.deepcopy(dense.model)
    with stage_cache.open_stage(job.work, "sparsify", key) as stage:
        if stage.record is not None:
            return trained_model.load_trained_model(stage, model)
        started = time.monotonic()
        # a group that is as narrow as the kernels like keeps all its channels, so none has to be small
        found = search_space.find_prunable_groups(
            model, image, adapted.head, asked, profile.measure_layers(model, image)
        )
        found = [group for group in found if group.channels > target.alignment]
        training_job = loop.TrainingJob(
            dataset=adapted.dataset, spec=spec, augment=adapted.augment, seed=recipe.seed + 3, label="sparsify",
            folder=stage.folder, balance=recipe.balance, teacher=dense.model,
            penalty=sparsity_penalty.make_penalty(found, asked.sparsity),
        )  # fmt: skip
        training = loop.train(model, training_job)
        weak = [sparsity_penalty.measure_weak_share(found, one) for one in (dense.model, model)]
        progress.log(
            f"sparsify: {weak[0]:.0%} -> {weak[1]:.0%} of the channels are under a tenth of their group's mean"
        )
        return trained_model.save_trained_model(
            stage, started, model, training, {"weak_before": weak[0], "weak_after": weak[1]}
        )


def _spec(recipe: Recipe) -> TrainSpec:
    epochs = recipe.prune.sparse_epochs
    return dataclasses.replace(
        recipe.recover, epochs=math.ceil(DEFAULT_EPOCH_SHARE * recipe.recover.epochs) if epochs is None else epochs
    )
