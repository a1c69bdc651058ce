"""prune: dense model, plan -> smaller model, at once or in rounds of cutting a little and training in between.

At once the plan is replayed and nothing is ranked here. In rounds the plan says how wide everything is at the end, which
is what was timed; which channels those are is ranked anew in every round, on the model that has recovered so far.
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
from toolchain.training import trained_model as trained_module
from toolchain.training.finetune import FinetunedModel

VERSION = 1
CUT_FILE = "surgery.json"  # in the numbering of the model that the round began with


@dataclass(frozen=True)
class PrunedModel:
    """The architecture that was planned, before its last training."""

    model: nn.Module
    surgery: Surgery  # in the dense model's numbering
    key: str  # of the weights that are left: the model's that was cut, or the last round's
    round_trainings: tuple[trained_module.TrainedModel, ...] = ()  # trainings on the way

    @property
    def history(self) -> list[Mapping[str, Any]]:
        """Epochs of all rounds, one behind the other."""
        found = [entry for one in self.round_trainings for entry in one.record["history"]]
        return [{**entry, "epoch": number} for number, entry in enumerate(found, 1)]


def apply_plan(start: trained_module.TrainedModel, plan: Surgery) -> PrunedModel:
    """The model with the whole plan applied; `start` is left as it was."""
    return PrunedModel(surgery.apply(start.model, plan), plan, start.key)


def run(job: Job, start: trained_module.TrainedModel, plan: Surgery, adapted: FinetunedModel) -> PrunedModel:
    """Cuts `start` down to the plan, in as many rounds as the recipe says; finished rounds are not done again.

    Args:
        start: the model to cut; left as it was.
        plan: where to.
        adapted: the dense model, the teacher of every round, and the images to train and rank on.

    Raises:
        ToolchainError: training diverged; or the model cannot be traced any more once channels are gone.
    """
    recipe = job.recipe
    if recipe.prune.rounds == 1 or not (plan.keep or plan.dropped):
        return apply_plan(start, plan)
    way = _Way(start, plan, adapted, recipe, job.target.alignment, adapted.dataset.example_input, job.work)
    now = PrunedModel(start.model, Surgery(), start.key)
    for number in range(1, recipe.prune.rounds + 1):
        now = way.go(number, now)
    return now


@dataclass(frozen=True)
class _Way:
    """What all rounds need."""

    start: trained_module.TrainedModel
    plan: Surgery
    adapted: FinetunedModel
    recipe: Recipe
    alignment: int
    image: Tensor
    work: Path

    @cached_property
    def whole(self) -> Sequence[PruningGroup]:
        return groups.find(self.start.model, self.image, self.adapted.head)

    def go(self, number: int, before: PrunedModel) -> PrunedModel:
        """One round: cut, then train; after the last cut, and where nothing was cut, there is no training here."""
        with stage_cache.open_stage(self.work, "prune", self._key(number, before)) as stage:
            started = time.monotonic()
            cut = self._cut(number, before, stage.folder / CUT_FILE)
            model, done = surgery.apply(before.model, cut), surgery.compose(before.surgery, cut)
            if number == self.recipe.prune.rounds or cut == Surgery():
                if stage.record is None:
                    stage_cache.finish(stage, started, {"history": []})
                return PrunedModel(model, done, stage.key, before.round_trainings)
            if stage.record is not None:
                trained = trained_module.load_trained_model(stage, model)
            else:
                trained = trained_module.save_trained_model(
                    stage, started, model, loop.train(model, self._job(number, stage.folder)), {}
                )
        return PrunedModel(trained.model, done, stage.key, (*before.round_trainings, trained))

    def _key(self, number: int, before: PrunedModel) -> str:
        asked = self.recipe.prune
        return files.digest(
            VERSION, before.key, self.plan, number, asked.rounds, asked.ranking, asked.protect,
            *channel_ranking.cache_key_parts(self.adapted, asked), self.alignment, self._spec,
            self.adapted.augment, self.recipe.balance, self.recipe.seed, list(self.image.shape),
        )  # fmt: skip

    @property
    def _spec(self) -> TrainSpec:
        share = self.recipe.recover.epochs // self.recipe.prune.rounds
        return dataclasses.replace(self.recipe.recover, epochs=share)

    def _job(self, number: int, folder: Path) -> loop.TrainingJob:
        return loop.TrainingJob(
            dataset=self.adapted.dataset, spec=self._spec, augment=self.adapted.augment, seed=self.recipe.seed + 3 + number,
            label=f"prune: round {number}", folder=folder, balance=self.recipe.balance,
            teacher=self.adapted.trained.model,
        )  # fmt: skip

    def _cut(self, number: int, before: PrunedModel, path: Path) -> Surgery:
        """What goes in this round; written down, so that a run that goes on cuts what it has begun to train."""
        if not path.exists():
            spec, own = self.recipe.prune, dataclasses.replace(self.start, model=before.model, key=before.key)
            ranking = channel_ranking.prepare_criterion(dataclasses.replace(self.adapted, trained=own), spec, self.work)
            found = search_space.build_search_space(
                before.model, self.image, head=self.adapted.head, spec=spec, alignment=self.alignment,
                criterion=ranking.score, gradients=ranking.gradients,
            )  # fmt: skip
            choice = pruning_rounds.choose_widths(found, self.whole, self.plan, before.surgery, number / spec.rounds)
            left = profile.total_macs(found.remaining_layers(choice)) / sum(layer.macs for layer in found.full_layers)
            progress.log(f"prune: round {number} of {spec.rounds} leaves {left:.0%} of its multiply-accumulates")
            files.write_json(path, surgery.build(before.model, found, choice))
        return surgery.read(path)
