"""adapt: pretrained model, domain -> fine-tuned dense model, the accuracy reference of all that follows.

Trained once for every seed asked for; with a larger teacher where one is given; and with each further set in turn,
which stays only if it brings something on the domain's own validation images.
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
from toolchain.config.recipe import AugmentSpec, ModelSpec, Recipe, ReuseSpec, TrainSpec
from toolchain.core import files, progress, stage_cache, statistics
from toolchain.core.types import Interval
from toolchain.data import augmentation
from toolchain.data.decoded_dataset import Dataset
from toolchain.data.joined_datasets import JoinedDataset, add_to_training
from toolchain.models import blocks, build, weights
from toolchain.training import linear_probe, loop
from toolchain.training import trained_model as trained_module
from toolchain.training.training_state import EpochMetrics, Score

VERSION = 4
RARE_CLASS_IMAGES = 5  # training images of a class that are said
FEW_IMAGES_PER_CLASS = 20  # images a class below which a trained head on frozen features is hard to beat
FEW_IMAGES_RATE_FACTOR = 0.1  # of the learning rate, where images are few
BALANCING_EPOCH_SHARE = 0.25  # of the epochs, again, to aim at a balance
BALANCING_RATE_FACTOR = 0.25  # of the learning rate


@dataclass(frozen=True)
class JoinTrial:
    """What one further set brought on validation."""

    name: str
    images: int
    weight: float
    left_out: Sequence[str]
    leaked: int
    corrupt: int
    gain: Interval  # of accuracy, paired over the validation images
    balanced_gain: Interval
    kept: bool


@dataclass(frozen=True)
class FinetunedModel:
    """The dense model, and what the stages after it train on and with."""

    trained: trained_module.TrainedModel
    head: str
    dataset: Dataset  # with the further sets that stayed
    augment: AugmentSpec
    seed_runs: tuple[trained_module.TrainedModel, ...]  # one a seed; the best of them is `trained`
    join_trials: tuple[JoinTrial, ...]


def run(job: Job, data: Dataset, joins: Sequence[JoinedDataset] = ()) -> FinetunedModel:
    """Fine-tunes the recipe's model on the domain's training images.

    Args:
        data: the domain's images.
        joins: further sets, tried in this order.

    Raises:
        ToolchainError: the model or its weights cannot be had, the augmentation does not suit the pictures, or
            training diverged.
    """
    recipe, work = job.recipe, job.work
    recipe = dataclasses.replace(recipe, adapt=_long_enough(recipe.adapt, len(data.splits["train"])))
    per_class = len(data.splits["train"]) / len(data.classes)
    if recipe.model.weights:  # otherwise there is nothing that training could lose
        recipe = dataclasses.replace(recipe, adapt=_careful(recipe.adapt, per_class))
    if rare := _rare(data):
        progress.log(f"adapt: hardly anything to learn from: {rare}")
    changes = augmentation.resolve(recipe.augment, job.domain.kind, per_class)
    best = _repeated(recipe, changes, data, work)
    trials = []
    for joined in joins:
        progress.log(f"adapt: once more with {len(joined.images)} images of {joined.name}")
        other = _repeated(recipe, changes, add_to_training(best.dataset, joined), work)
        trial = _compared(best, other, joined, recipe.balance)
        trials.append(trial)
        best = other if trial.kept else best
    return dataclasses.replace(best, join_trials=tuple(trials))


def _rare(data: Dataset) -> str:
    """Classes with next to no training images."""
    counts = torch.bincount(data.splits["train"].labels, minlength=len(data.classes)).tolist()
    return ", ".join(
        f"{name} {count} images" for name, count in zip(data.classes, counts, strict=True) if count < RARE_CLASS_IMAGES
    )


def _long_enough(spec: TrainSpec, images: int) -> TrainSpec:
    """More epochs where a small set has too few steps in them; 0 epochs stay 0."""
    least = math.ceil(spec.least_steps / math.ceil(images / spec.batch_size))
    if not 0 < spec.epochs < least:
        return spec
    progress.log(
        f"adapt: {least} epochs instead of {spec.epochs}, so that {images} images give {spec.least_steps} steps"
    )
    return dataclasses.replace(spec, epochs=least)


def _careful(spec: TrainSpec, per_class: float) -> TrainSpec:
    """Fine-tuning where images are so few that it easily loses what pretraining gave.

    The head starts as a linear probe on the images and their mirrored copies, batch norm keeps its statistics, steps
    are small, and the start is given up only for what beats it by more than chance.
    """
    if per_class >= FEW_IMAGES_PER_CLASS or spec.epochs == 0:
        return spec
    progress.log(
        f"adapt: {per_class:.0f} images a class: a linear probe first, then small steps with batch norm frozen"
    )
    rate = spec.learning_rate * FEW_IMAGES_RATE_FACTOR
    return dataclasses.replace(spec, head_start="probe", freeze_epochs=0, freeze_norm=True, learning_rate=rate)


def _repeated(recipe: Recipe, changes: AugmentSpec, data: Dataset, work: Path) -> FinetunedModel:
    """One training for every seed; the best on validation is the result."""
    teacher = _teacher(recipe, changes, data, work)
    repeats = []
    for number in range(recipe.seeds):
        one = dataclasses.replace(recipe, seed=recipe.seed + number)
        trained, head = _trained(one, recipe.model, changes, data, teacher, work, recipe.reuse)
        repeats.append(_balanced(one, trained, changes, data, work) if recipe.balance else trained)
    best = max(repeats, key=lambda trained: validation_objective(trained.record, recipe.balance))
    return FinetunedModel(best, head, data, changes, tuple(repeats), ())


def validation_objective(figures: Mapping[str, Any], balance: float) -> float:
    """What a training reached of what is aimed at, on validation."""
    return float((1 - balance) * figures["best_accuracy"] + balance * figures["best_balanced"])


def _teacher(recipe: Recipe, changes: AugmentSpec, data: Dataset, work: Path) -> trained_module.TrainedModel | None:
    if recipe.teacher is None:
        return None
    progress.log(f"adapt: the teacher, {recipe.teacher.name}, first")
    alone = dataclasses.replace(recipe, adapt=dataclasses.replace(recipe.adapt, distill=0.0))
    return _trained(alone, recipe.teacher, changes, data, None, work)[0]


def _trained(
    recipe: Recipe, spec: ModelSpec, changes: AugmentSpec, data: Dataset, teacher: trained_module.TrainedModel | None, work: Path,
    reuse: ReuseSpec | Literal["auto"] = build.WHOLE_NETWORK,
) -> tuple[trained_module.TrainedModel, str]:  # fmt: skip
    """One training of one model, or what an earlier run left of it; and the name of its head."""
    assert reuse != "auto", "settled before training"
    key = files.digest(
        VERSION, data.digest, data.preprocess, dataclasses.replace(spec, weights=""), weights.weights_digest(spec),
        recipe.adapt, changes, recipe.seed, teacher and teacher.key, *((reuse,) if reuse != build.WHOLE_NETWORK else ()),
    )  # fmt: skip
    with stage_cache.open_stage(work, "adapt", key) as stage:
        if stage.record is not None:
            model = build.renormalize_input(
                build.build_untrained(spec, len(data.classes), reuse), data.preprocess, spec
            )
            return trained_module.load_trained_model(stage, model), build.find_head(model, len(data.classes))
        started = time.monotonic()
        model, head, loaded = build.build_with_new_head(spec, len(data.classes), seed=recipe.seed, reuse=reuse)
        build.renormalize_input(model, data.preprocess, spec)
        progress.log(f"adapt: {loaded}")
        first = _probed(model, head, recipe, data, changes)
        frozen = blocks.modules_between(model, head, last=reuse.freeze) if reuse.freeze else ()
        job = loop.TrainingJob(
            dataset=data, spec=recipe.adapt, augment=changes, seed=recipe.seed, label="adapt", folder=stage.folder,
            head=head, frozen_modules=frozen, teacher=teacher.model if teacher else None,
        )  # fmt: skip
        training = loop.train(model, job, keep_start=first is not None, margin=_chance(first, recipe.adapt, data))
        figures = {"weights": loaded, "seed": recipe.seed, "probe": first}
        return trained_module.save_trained_model(stage, started, model, training, figures), head


def _balanced(
    recipe: Recipe, plain: trained_module.TrainedModel, changes: AugmentSpec, data: Dataset, work: Path
) -> trained_module.TrainedModel:
    """A few more epochs that aim at the balance asked for, from the model trained without.

    Features learn best from the classes as they come; only then are the rare ones given their weight (Cao et al., arXiv
    1906.07413). So every balance shares the long training, and another one costs a few epochs.
    """
    epochs = math.ceil(recipe.adapt.epochs * BALANCING_EPOCH_SHARE)
    rate = recipe.adapt.learning_rate * BALANCING_RATE_FACTOR
    spec = dataclasses.replace(
        recipe.adapt, epochs=epochs, learning_rate=rate, schedule="cosine", freeze_epochs=0, patience=0
    )
    key = files.digest(VERSION, plain.key, spec, recipe.balance)
    model = copy.deepcopy(plain.model)
    with stage_cache.open_stage(work, "adapt", key) as stage:
        if stage.record is not None:
            return trained_module.load_trained_model(stage, model)
        started = time.monotonic()
        job = loop.TrainingJob(
            dataset=data, spec=spec, augment=changes, seed=recipe.seed, label="adapt: balance", folder=stage.folder,
            balance=recipe.balance,  # without the teacher, who aims at plain accuracy
        )  # fmt: skip
        training = _continued(plain.record, loop.train(model, job, keep_start=True))
        figures = {name: plain.record[name] for name in ("weights", "seed", "probe")}
        return trained_module.save_trained_model(stage, started, model, training, figures)


def _continued(before: Mapping[str, Any], after: loop.TrainingResult) -> loop.TrainingResult:
    """Two trainings, one behind the other, as one."""
    first = [EpochMetrics(**entry) for entry in before["history"]]
    rest = [dataclasses.replace(entry, epoch=entry.epoch + len(first)) for entry in after.history]
    best = before["best_epoch"] if after.best_epoch < 0 else len(first) + after.best_epoch
    return dataclasses.replace(after, history=(*first, *rest), best_epoch=best)


def _chance(first: Score | None, spec: TrainSpec, data: Dataset) -> float:
    """One standard error of the probe's accuracy, which the best of many epochs reaches by luck; 0 on larger sets."""
    if first is None or not spec.freeze_norm:
        return 0.0
    return math.sqrt(first.accuracy * (1 - first.accuracy) / len(data.splits["val"]))


def _probed(model: nn.Module, head: str, recipe: Recipe, data: Dataset, changes: AugmentSpec) -> Score | None:
    """Makes a linear probe the head, where the recipe asks for it and the head is linear; its score on validation."""
    if recipe.adapt.head_start != "probe" or not isinstance(model.get_submodule(head), nn.Linear):
        return None
    ways = ((2,), changes.horizontal_flip), ((1,), changes.vertical_flip)
    mirrors: list[tuple[int, ...]] = [dimensions for dimensions, wanted in ways if wanted]
    mirrors += [(1, 2)] if len(mirrors) == 2 else []
    found = linear_probe.fit(model, head, data, mirrors=mirrors if recipe.adapt.freeze_norm else ())
    linear_probe.install(found, model, head)
    progress.log(f"adapt: a linear probe reaches {found.validation_score.accuracy:.4f} on validation")
    return found.validation_score


def _compared(before: FinetunedModel, after: FinetunedModel, joined: JoinedDataset, balance: float) -> JoinTrial:
    """Whether a further set is worth keeping: paired over the domain's own validation images."""
    held = before.dataset.splits["val"]

    def right(adapted: FinetunedModel) -> Tensor:
        return loop.predict(adapted.trained.model, held, before.dataset.preprocess).argmax(1) == held.labels

    old, new, labels = right(before).numpy(), right(after).numpy(), held.labels.numpy()
    gain, balanced = statistics.accuracy_drop(new, old), statistics.balanced_drop(new, old, labels)
    kept = (1 - balance) * gain.estimate + balance * balanced.estimate > 0
    verdict = "stays" if kept else "is dropped"
    progress.log(
        f"adapt: {joined.name} brings {100 * gain.estimate:+.1f} points [{100 * gain.low:+.1f}, {100 * gain.high:+.1f}] "
        f"on {len(held)} validation images and {verdict}"
    )
    weight = float(torch.mean(joined.images.loss_weights))
    return JoinTrial(
        joined.name, len(joined.images), weight, joined.dropped_classes, joined.leaked_images, joined.corrupt_files, gain, balanced, kept
    )  # fmt: skip
