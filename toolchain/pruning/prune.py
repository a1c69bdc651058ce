"""Prune the dense model to its plan, at once or in rounds of pruning a little and training in between.

At once, the plan is replayed and nothing is ranked. In rounds, the plan fixes the final widths, which are the ones that
were timed; the channels are ranked anew in every round, on the model that has recovered so far.
"""

import dataclasses
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from toolchain.config.job import Job
from toolchain.config.recipe import Recipe, TrainSpec
from toolchain.core import files, progress, stage_cache
from toolchain.models import profile
from toolchain.pruning import channel_ranking, groups, pruning_rounds, search_space, surgery
from toolchain.pruning.groups import PruningGroup
from toolchain.pruning.surgery import Surgery
from toolchain.training import loop
from toolchain.training.finetune import FinetunedModel
from toolchain.training.trained_model import TrainedModel, load_trained_model, save_trained_model

VERSION = 1
ROUND_SURGERY_FILE = "surgery.json"  # in the numbering of the model that the round started from


@dataclass(frozen=True)
class PrunedModel:
    """A model with the planned architecture, before its recovery."""

    model: nn.Module
    surgery: Surgery  # in the dense model's numbering
    key: str  # of the weights: those of the model that was pruned, or of the last round
    round_trainings: tuple[TrainedModel, ...] = ()  # one per round that trained

    @property
    def history(self) -> list[Mapping[str, Any]]:
        """Epochs of all rounds in sequence, numbered from 1."""
        entries = [entry for training in self.round_trainings for entry in training.record["history"]]
        return [{**entry, "epoch": number} for number, entry in enumerate(entries, 1)]


def apply_plan(start: TrainedModel, plan: Surgery) -> PrunedModel:
    """Return the model with the whole plan applied; `start` is left as it was."""
    return PrunedModel(surgery.apply(start.model, plan), plan, start.key)


def keep_whole(start: TrainedModel) -> PrunedModel:
    """Return a model that cannot be pruned as it is."""
    return PrunedModel(start.model, Surgery(), start.key)


def run(job: Job, start: TrainedModel, plan: Surgery, finetuned: FinetunedModel) -> PrunedModel:
    """Prune `start` to the plan, in as many rounds as the recipe says; finished rounds are read from the cache.

    Args:
        job: recipe, target and work folder.
        start: the model to prune, left as it was.
        plan: the final architecture.
        finetuned: the dense model, which is the teacher of every round, and the dataset to train and rank on.

    Raises:
        ToolchainError: training diverged, or the model can no longer be traced after a round.
    """
    recipe = job.recipe
    if recipe.prune.rounds == 1 or not (plan.keep or plan.dropped):
        return apply_plan(start, plan)
    rounds = _PruningRounds(
        start, plan, finetuned, recipe, job.target.alignment, finetuned.dataset.example_input, job.work
    )
    pruned = PrunedModel(start.model, Surgery(), start.key)
    for number in range(1, recipe.prune.rounds + 1):
        pruned = rounds.prune_and_train(number, pruned)
    return pruned


@dataclass(frozen=True)
class _PruningRounds:
    """The inputs that all rounds share."""

    start: TrainedModel
    plan: Surgery
    finetuned: FinetunedModel
    recipe: Recipe
    alignment: int
    image: Tensor
    work: Path

    @cached_property
    def original_groups(self) -> Sequence[PruningGroup]:
        return groups.find(self.start.model, self.image, self.finetuned.head)

    def prune_and_train(self, number: int, before: PrunedModel) -> PrunedModel:
        """Run one round; the last one, and a round that prunes nothing, leave the training to `recover`."""
        with stage_cache.open_stage(self.work, "prune", self._key(number, before)) as stage:
            started = time.monotonic()
            step = self._plan_round(number, before, stage.folder / ROUND_SURGERY_FILE)
            model, applied = surgery.apply(before.model, step), surgery.compose(before.surgery, step)
            if number == self.recipe.prune.rounds or step == Surgery():
                if stage.record is None:
                    stage_cache.finish(stage, started, {"history": []})
                return PrunedModel(model, applied, stage.key, before.round_trainings)
            if stage.record is not None:
                trained = load_trained_model(stage, model)
            else:
                training = loop.train(model, self._training_job(number, stage.folder))
                trained = save_trained_model(stage, started, model, training, {})
        return PrunedModel(trained.model, applied, stage.key, (*before.round_trainings, trained))

    def _key(self, number: int, before: PrunedModel) -> str:
        spec = self.recipe.prune
        return files.digest(
            VERSION, before.key, self.plan, number, spec.rounds, spec.ranking, spec.protect,
            *channel_ranking.cache_key_parts(self.finetuned, spec), self.alignment, self._training_spec,
            self.finetuned.augment, self.recipe.balance, self.recipe.seed, list(self.image.shape),
        )  # fmt: skip

    @property
    def _training_spec(self) -> TrainSpec:
        """The recipe's recovery, with each round's share of its epochs."""
        epochs = self.recipe.recover.epochs // self.recipe.prune.rounds
        return dataclasses.replace(self.recipe.recover, epochs=epochs)

    def _training_job(self, number: int, folder: Path) -> loop.TrainingJob:
        return loop.TrainingJob(
            dataset=self.finetuned.dataset, spec=self._training_spec, augment=self.finetuned.augment,
            seed=self.recipe.seed + 3 + number, label=f"prune: round {number}", folder=folder, balance=self.recipe.balance,
            teacher=self.finetuned.trained.model,
        )  # fmt: skip

    def _plan_round(self, number: int, before: PrunedModel, path: Path) -> Surgery:
        """Return the surgery of this round, read from `path` if it is there.

        It is written before training starts, so that a resumed run prunes the channels that it has begun to train
        without.
        """
        if not path.exists():
            spec, current = self.recipe.prune, dataclasses.replace(self.start, model=before.model, key=before.key)
            criterion = channel_ranking.prepare_criterion(
                dataclasses.replace(self.finetuned, trained=current), spec, self.work
            )
            space = search_space.build_search_space(
                before.model, self.image, head=self.finetuned.head, spec=spec, alignment=self.alignment,
                criterion=criterion.score, gradients=criterion.gradients,
            )  # fmt: skip
            share = number / spec.rounds
            subnetwork = pruning_rounds.choose_widths(space, self.original_groups, self.plan, before.surgery, share)
            kept = profile.total_macs(space.remaining_layers(subnetwork)) / profile.total_macs(space.full_layers)
            progress.log(f"prune: round {number} of {spec.rounds} keeps {kept:.0%} of the round's multiply-accumulates")
            files.write_json(path, surgery.build(before.model, space, subnetwork))
        return surgery.read(path)
