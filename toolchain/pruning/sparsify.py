"""Train the dense model with a sparsity penalty, and let the result be ranked and pruned in its place.

The dense model stays the accuracy baseline and the teacher. Without `prune.sparsity` nothing is trained.
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
from toolchain.training import loop
from toolchain.training.finetune import FinetunedModel
from toolchain.training.trained_model import TrainedModel, load_trained_model, save_trained_model

VERSION = 1
DEFAULT_EPOCH_SHARE = 0.5  # of the recover epochs, where the recipe does not give a number


def run(job: Job, finetuned: FinetunedModel) -> TrainedModel:
    """Train the dense model with a penalty on the groups of channels that may be pruned.

    Args:
        job: recipe, target and work folder.
        finetuned: the dense model, which is left as it was, and its dataset.

    Raises:
        ToolchainError: training diverged, or the model cannot be traced for pruning.
    """
    recipe, target, image = job.recipe, job.target, finetuned.dataset.example_input
    dense, prune_spec = finetuned.trained, recipe.prune
    if prune_spec.sparsity == 0 or prune_spec.ratio == 0:
        return dense
    spec = _training_spec(recipe)
    key = files.digest(
        VERSION, dense.key, prune_spec.sparsity, prune_spec.protect, target.alignment, spec, finetuned.augment, recipe.balance,
        recipe.seed,
    )  # fmt: skip
    model = copy.deepcopy(dense.model)
    with stage_cache.open_stage(job.work, "sparsify", key) as stage:
        if stage.record is not None:
            return load_trained_model(stage, model)
        started = time.monotonic()
        groups = search_space.find_prunable_groups(
            model, image, finetuned.head, prune_spec, profile.measure_layers(model, image)
        )
        # a group no wider than the alignment keeps all its channels, so none of them has to shrink
        groups = [group for group in groups if group.channels > target.alignment]
        training_job = loop.TrainingJob(
            dataset=finetuned.dataset, spec=spec, augment=finetuned.augment, seed=recipe.seed + 3, label="sparsify",
            folder=stage.folder, balance=recipe.balance, teacher=dense.model,
            penalty=sparsity_penalty.make_penalty(groups, prune_spec.sparsity),
        )  # fmt: skip
        training = loop.train(model, training_job)
        before, after = (sparsity_penalty.measure_weak_share(groups, network) for network in (dense.model, model))
        progress.log(
            f"sparsify: channels with a norm below {sparsity_penalty.WEAK_NORM_SHARE:.0%} of their group's mean: "
            f"{before:.0%} before, {after:.0%} after"
        )
        return save_trained_model(stage, started, model, training, {"weak_before": before, "weak_after": after})


def _training_spec(recipe: Recipe) -> TrainSpec:
    epochs = recipe.prune.sparse_epochs
    return dataclasses.replace(
        recipe.recover, epochs=math.ceil(DEFAULT_EPOCH_SHARE * recipe.recover.epochs) if epochs is None else epochs
    )
