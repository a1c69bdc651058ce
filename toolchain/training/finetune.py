"""Fine-tune a pretrained model on the user's dataset: the dense model, the quality baseline of all later steps.

One training for every seed, with a larger teacher where the recipe names one. Then once more with each further dataset
to join in turn, which stays only if it improves accuracy on the user's own validation images.
"""

import copy
import dataclasses
import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from toolchain.config.job import Job
from toolchain.config.recipe import AugmentSpec, ModelSpec, Recipe, ReuseSpec
from toolchain.core import files, progress, stage_cache, statistics
from toolchain.core.types import Interval
from toolchain.data import augmentation
from toolchain.data.decoded_dataset import Dataset
from toolchain.data.joined_datasets import JoinedDataset, add_to_training
from toolchain.models import blocks, build, weights
from toolchain.training import few_images, linear_probe, loop
from toolchain.training.trained_model import TrainedModel, load_trained_model, save_trained_model
from toolchain.training.training_state import EpochMetrics, Score

VERSION = 4
BALANCING_EPOCH_SHARE = 0.25  # of the recipe's epochs, trained in addition where it asks for a balance
BALANCING_RATE_FACTOR = 0.25  # on the learning rate of those epochs


@dataclass(frozen=True)
class JoinTrial:
    """The effect of one further dataset on validation accuracy, and whether it is kept."""

    name: str
    images: int
    weight: float  # mean loss weight of its images
    left_out: Sequence[str]  # its classes that the user's dataset does not have
    leaked: int  # images left out because they are also in validation or test
    corrupt: int  # files that cannot be read
    gain: Interval  # of accuracy, 0..1, paired over the validation images
    balanced_gain: Interval
    kept: bool


@dataclass(frozen=True)
class FinetunedModel:
    """The dense model, and the dataset and augmentation that later stages train with."""

    trained: TrainedModel
    head: str  # name of the layer whose outputs are the classes
    dataset: Dataset  # with the joined datasets that were kept
    augment: AugmentSpec
    seed_runs: tuple[TrainedModel, ...]  # one per seed; `trained` is the best of them
    join_trials: tuple[JoinTrial, ...]


def run(job: Job, data: Dataset, joins: Sequence[JoinedDataset] = ()) -> FinetunedModel:
    """Fine-tune the recipe's model on the training images of the dataset.

    Args:
        job: recipe, domain and work folder.
        data: the user's dataset.
        joins: further datasets, tried in this order.

    Raises:
        ToolchainError: the model or its weights are not available, the augmentation does not suit the images, or
            training diverged.
    """
    recipe, work = job.recipe, job.work
    recipe = dataclasses.replace(recipe, adapt=few_images.extend_epochs(recipe.adapt, len(data.splits["train"])))
    images_per_class = len(data.splits["train"]) / len(data.classes)
    if recipe.model.weights:  # without pretrained weights there is nothing to protect
        recipe = dataclasses.replace(recipe, adapt=few_images.protect_pretraining(recipe.adapt, images_per_class))
    if recipe.adapt.epochs and (rare := few_images.describe_rare_classes(data)):
        progress.log(
            f"adapt: classes with fewer than {few_images.RARE_CLASS_IMAGES} training images: {rare}. "
            "That is too few to learn from: add images of them"
        )
    augment = augmentation.resolve(recipe.augment, job.domain.kind, images_per_class)
    best = _train_every_seed(recipe, augment, data, work)
    trials = []
    for joined in joins:
        progress.log(f"adapt: training again with {len(joined.images)} images of {joined.name} added")
        candidate = _train_every_seed(recipe, augment, add_to_training(best.dataset, joined), work)
        trial = _compare_on_validation(best, candidate, joined, recipe.balance)
        trials.append(trial)
        best = candidate if trial.kept else best
    return dataclasses.replace(best, join_trials=tuple(trials))


def _train_every_seed(recipe: Recipe, augment: AugmentSpec, dataset: Dataset, work: Path) -> FinetunedModel:
    """Train once for every seed of the recipe; the best on validation is the result."""
    teacher = _train_teacher(recipe, augment, dataset, work)
    seed_runs = []
    for index in range(recipe.seeds):
        seeded = dataclasses.replace(recipe, seed=recipe.seed + index)
        trained, head = _train_model(seeded, recipe.model, augment, dataset, teacher, work, recipe.reuse)
        seed_runs.append(_rebalance(seeded, trained, augment, dataset, work) if recipe.balance else trained)
    best = max(seed_runs, key=lambda trained: validation_objective(trained.record, recipe.balance))
    return FinetunedModel(best, head, dataset, augment, tuple(seed_runs), ())


def validation_objective(figures: Mapping[str, Any], balance: float) -> float:
    """Return the mix of accuracy and balanced accuracy, 0..1, that a training reached on validation.

    Args:
        figures: the training's record, with `best_accuracy` and `best_balanced`.
        balance: weight of the balanced accuracy, 0..1.
    """
    return float((1 - balance) * figures["best_accuracy"] + balance * figures["best_balanced"])


def _train_teacher(recipe: Recipe, augment: AugmentSpec, dataset: Dataset, work: Path) -> TrainedModel | None:
    if recipe.teacher is None:
        return None
    progress.log(f"adapt: training the teacher {recipe.teacher.name} first")
    without_distillation = dataclasses.replace(recipe, adapt=dataclasses.replace(recipe.adapt, distill=0.0))
    return _train_model(without_distillation, recipe.teacher, augment, dataset, None, work)[0]


def _train_model(
    recipe: Recipe, spec: ModelSpec, augment: AugmentSpec, dataset: Dataset, teacher: TrainedModel | None, work: Path,
    reuse: ReuseSpec | Literal["auto"] = build.WHOLE_NETWORK,
) -> tuple[TrainedModel, str]:  # fmt: skip
    """Train one model, or load it from the cache; return it with the name of its head."""
    assert reuse != "auto", "reuse has to be resolved before training"
    key = files.digest(
        VERSION, dataset.digest, dataset.preprocess, dataclasses.replace(spec, weights=""), weights.weights_digest(spec),
        recipe.adapt, augment, recipe.seed, teacher and teacher.key, *((reuse,) if reuse != build.WHOLE_NETWORK else ()),
        *build.hash_user_model(spec, len(dataset.classes), recipe.seed),
    )  # fmt: skip
    with stage_cache.open_stage(work, "adapt", key) as stage:
        if stage.record is not None:
            model = build.renormalize_input(
                build.build_untrained(spec, len(dataset.classes), reuse), dataset.preprocess, spec
            )
            return load_trained_model(stage, model), build.find_head(model, len(dataset.classes))
        started = time.monotonic()
        if spec.head == "keep":
            model, head, loaded = build.build_trained(spec, len(dataset.classes))
        else:
            model, head, loaded = build.build_with_new_head(spec, len(dataset.classes), seed=recipe.seed, reuse=reuse)
        build.renormalize_input(model, dataset.preprocess, spec)
        progress.log(f"adapt: {loaded}")
        probe = _start_from_probe(model, head, recipe, dataset, augment)
        frozen = blocks.modules_between(model, head, last=reuse.freeze) if reuse.freeze else ()
        training_job = loop.TrainingJob(
            dataset=dataset, spec=recipe.adapt, augment=augment, seed=recipe.seed, label="adapt", folder=stage.folder,
            head=head, frozen_modules=frozen, teacher=teacher.model if teacher else None,
        )  # fmt: skip
        margin = few_images.margin_over_probe(probe, recipe.adapt, dataset)
        is_trained = spec.head == "keep"
        training = loop.train(model, training_job, keep_start=probe is not None or is_trained, margin=margin)
        figures = {"weights": loaded, "seed": recipe.seed, "probe": probe}
        return save_trained_model(stage, started, model, training, figures), head


def _rebalance(
    recipe: Recipe, trained: TrainedModel, augment: AugmentSpec, dataset: Dataset, work: Path
) -> TrainedModel:
    """Train a few more epochs towards the recipe's balance, from a model trained without it.

    Features are learned best from the classes as they are distributed; only then do rare classes get more weight. So all
    balances share the long training, and trying another one costs a few epochs.

    Source: deferred re-weighting, Cao et al., arXiv 1906.07413.
    """
    epochs = math.ceil(recipe.adapt.epochs * BALANCING_EPOCH_SHARE)
    rate = recipe.adapt.learning_rate * BALANCING_RATE_FACTOR
    spec = dataclasses.replace(
        recipe.adapt, epochs=epochs, learning_rate=rate, schedule="cosine", freeze_epochs=0, patience=0
    )
    key = files.digest(VERSION, trained.key, spec, recipe.balance)
    model = copy.deepcopy(trained.model)
    with stage_cache.open_stage(work, "adapt", key) as stage:
        if stage.record is not None:
            return load_trained_model(stage, model)
        started = time.monotonic()
        training_job = loop.TrainingJob(
            dataset=dataset, spec=spec, augment=augment, seed=recipe.seed, label="adapt: balance", folder=stage.folder,
            balance=recipe.balance,  # without the teacher, which was trained for plain accuracy
        )  # fmt: skip
        training = _append_history(trained.record, loop.train(model, training_job, keep_start=True))
        figures = {name: trained.record[name] for name in ("weights", "seed", "probe")}
        return save_trained_model(stage, started, model, training, figures)


def _append_history(record: Mapping[str, Any], training: loop.TrainingResult) -> loop.TrainingResult:
    """Return two trainings in sequence as one, its epochs numbered on from those in `record`."""
    earlier = [EpochMetrics(**entry) for entry in record["history"]]
    later = [dataclasses.replace(entry, epoch=entry.epoch + len(earlier)) for entry in training.history]
    best = record["best_epoch"] if training.best_epoch < 0 else len(earlier) + training.best_epoch
    return dataclasses.replace(training, history=(*earlier, *later), best_epoch=best)


def _start_from_probe(
    model: nn.Module, head: str, recipe: Recipe, dataset: Dataset, augment: AugmentSpec
) -> Score | None:
    """Install a linear probe as the head and return its score on validation.

    None, and the head is left as it is, where the recipe does not ask for a probe or the head is not linear.
    """
    if recipe.adapt.head_start != "probe" or not isinstance(model.get_submodule(head), nn.Linear):
        return None
    flips = ((2,), augment.horizontal_flip), ((1,), augment.vertical_flip)
    mirrors: list[tuple[int, ...]] = [dimensions for dimensions, allowed in flips if allowed]
    mirrors += [(1, 2)] if len(mirrors) == 2 else []
    probe = linear_probe.fit(model, head, dataset, mirrors=mirrors if recipe.adapt.freeze_norm else ())
    linear_probe.install(probe, model, head)
    progress.log(f"adapt: validation accuracy of the linear probe {probe.validation_score.accuracy:.4f}")
    return probe.validation_score


def _compare_on_validation(
    baseline: FinetunedModel, candidate: FinetunedModel, joined: JoinedDataset, balance: float
) -> JoinTrial:
    """Decide whether a further dataset is kept, paired over the user's own validation images."""
    validation = baseline.dataset.splits["val"]

    def find_correct(model: FinetunedModel) -> Tensor:
        logits = loop.predict(model.trained.model, validation, baseline.dataset.preprocess)
        return logits.argmax(1) == validation.labels

    before, after = find_correct(baseline).numpy(), find_correct(candidate).numpy()
    gain = statistics.accuracy_drop(after, before)  # from the candidate to the baseline: positive is better
    balanced_gain = statistics.balanced_drop(after, before, validation.labels.numpy())
    kept = (1 - balance) * gain.estimate + balance * balanced_gain.estimate > 0
    progress.log(
        f"adapt: {joined.name} changes validation accuracy by {100 * gain.estimate:+.1f} points "
        f"[{100 * gain.low:+.1f}, {100 * gain.high:+.1f}] on {len(validation)} images and is "
        f"{'kept' if kept else 'dropped'}"
    )
    weight = float(torch.mean(joined.images.loss_weights))
    return JoinTrial(
        joined.name, len(joined.images), weight, joined.dropped_classes, joined.leaked_images, joined.corrupt_files, gain,
        balanced_gain, kept,
    )  # fmt: skip
