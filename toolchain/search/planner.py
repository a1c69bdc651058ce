"""How a plan is found: for a share of the multiply-accumulates, for budgets, or as a lock says.

A latency is met by timing untrained architectures in the target's runtime: first in the form that the dense model would
ship in, then, once a pruned model is known, in its own. Which size of pictures loses the least no weight tells: where
the recipe lets it choose, a short training does.
"""

import copy
import math
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from toolchain.config.budget_limits import BudgetLimit, Quantity
from toolchain.config.job import Job
from toolchain.config.target import Target
from toolchain.core import files, progress
from toolchain.core.errors import ToolchainError
from toolchain.export import prune_graph
from toolchain.models import profile
from toolchain.models.profile import Layer
from toolchain.pruning import pruning_rounds, surgery, width_search
from toolchain.pruning import search_space as options_module
from toolchain.pruning.channel_ranking import ChannelCriterion
from toolchain.pruning.surgery import Surgery
from toolchain.quantization.placement import Placement
from toolchain.quantization.placement_result import PlacementResult
from toolchain.search import latency_search, place
from toolchain.search.architecture_timing import ArchitectureTimer, ShippedForm
from toolchain.search.latency_search import BudgetUnreachable, LatencyFit
from toolchain.search.pruning_plan import CandidatePlan, ImageSizeTrial, Lock
from toolchain.training import finetune, input_size, loop
from toolchain.training.finetune import FinetunedModel

DEFAULT_RATIO = 0.5  # of the multiply-accumulates, where nobody says how far
AIMED_SIZE_SHARE = 0.98  # of a budget of bytes
SIZE_MODEL_SAMPLES = 8  # architectures whose files are made to learn what bytes go with
TRIAL_EPOCH_SHARE = 1 / 8  # of recover's epochs, to choose a size of pictures by

InputResizer = Callable[[tuple[int, int]], FinetunedModel]  # the job with pictures of another size


@dataclass(frozen=True)
class PruningPlanner:
    """What every way of planning needs."""

    job: Job
    finetuned: FinetunedModel
    example_input: Tensor  # an input of the size that is planned for, float32 [1, 3, height, width]
    criterion: ChannelCriterion
    folder: Path

    def replay_lock(self, lock: Lock) -> CandidatePlan:
        """The plan of a lock; its channels too where it ranked the same weights."""
        if lock.weights == self.finetuned.trained.key or lock.surgery == Surgery():
            return CandidatePlan(lock.surgery, lock.fitted, lock.resized, dense_precision=lock.dense)
        options = self.build_search_space(lock.surgery.dropped)
        again = surgery.build(
            self.finetuned.trained.model, options, pruning_rounds.replay_widths(options, lock.surgery)
        )
        return CandidatePlan(again, lock.fitted, lock.resized, dense_precision=lock.dense)

    def plan_for_ratio(self) -> Surgery:
        """A plan that removes a share of the multiply-accumulates."""
        spec = self.job.recipe.prune
        spec = spec if spec.ratio is not None else replace(spec, ratio=DEFAULT_RATIO)
        return options_module.plan_for_ratio(
            self.finetuned.trained.model, self.example_input, head=self.finetuned.head, spec=spec, alignment=self.job.target.alignment,
            criterion=self.criterion.score, gradients=self.criterion.gradients,
        )  # fmt: skip

    def build_search_space(self, blocks: Sequence[str] = ()) -> width_search.SearchSpace:
        """What may be cut."""
        return options_module.build_search_space(
            self.finetuned.trained.model, self.example_input, head=self.finetuned.head, spec=self.job.recipe.prune,
            alignment=self.job.target.alignment, criterion=self.criterion.score, gradients=self.criterion.gradients, blocks=blocks,
        )  # fmt: skip

    def plan_for_budget(
        self, limits: Mapping[Quantity, BudgetLimit], placed: PlacementResult | None, at: InputResizer | None
    ) -> CandidatePlan:
        """A plan that meets every limit, with the pictures' size that loses the least where the recipe lets it choose."""
        latency, dense = limits.get("latency"), self.finetuned.trained.model
        form, dense_ms = (
            choose_shipped_form(placed, self.job.target, timed=latency is not None) if placed else (None, 0.0)
        )
        share = latency.as_share_of(dense_ms) if latency else None
        if share is not None and share >= 1 and len(limits) == 1:
            return CandidatePlan(Surgery())
        timer = ArchitectureTimer(dense, self.example_input, self.job.target, form, self.folder) if form else None
        asked = _Asked(limits, share, dense_ms, profile.measure_layers(dense, self.example_input), timer)
        own = (self.example_input.shape[2], self.example_input.shape[3])
        sizes, found, refused = self._sizes(own, at), list[CandidatePlan](), None
        for size in (own, *sizes):
            if sizes:
                progress.log(f"fit: pictures of {size[0]}x{size[1]}")
            try:
                planned = self._at(size, asked)
            except BudgetUnreachable as reason:
                refused = reason
                continue
            found.append(
                replace(
                    planned,
                    reduced_image_size=None if size == own else size,
                    dense_precision=form.precision if form else None,
                )
            )
        if timer:
            timer.remove_candidates()
        if not found:
            assert refused is not None
            raise refused
        return found[0] if len(found) == 1 or at is None else self._best(found, own, at)

    def _sizes(self, own: tuple[int, int], at: InputResizer | None) -> list[tuple[int, int]]:
        """Smaller sizes of pictures to try, where the recipe allows and the model takes them."""
        asked = input_size.list_smaller_sizes(own, self.job.recipe.prune.resolution) if at else []
        sizes = [size for size in asked if _takes(self.finetuned.trained.model, size)]
        if asked and not sizes:
            progress.log(f"fit: this model takes no pictures smaller than {own[0]}x{own[1]}")
        return sizes

    def _at(self, size: tuple[int, int], asked: "_Asked") -> CandidatePlan:
        """A plan that meets every limit with pictures of one size."""
        dense, here = self.finetuned.trained.model, replace(self, example_input=torch.zeros(1, 3, *size))
        timer = asked.timer and (
            asked.timer if size == tuple(self.example_input.shape[2:]) else asked.timer.with_input(here.example_input)
        )
        free = (
            prune_graph.find_droppable_blocks(timer.graph)
            if timer and asked.share is not None and self.job.recipe.prune.depth
            else ()
        )
        options = here.build_search_space(free)
        rest = asked.rest(dense, options, timer)
        if asked.share is None or timer is None:
            return CandidatePlan(surgery.build(dense, options, width_search.search(options, rest, 1.0)))
        search = latency_search.LatencyProblem(
            options, lambda choice: surgery.build(dense, options, choice), asked.share, rest
        )
        found, placement = here._latency(search, timer, asked)
        return CandidatePlan(
            found.plan, LatencyFit(
                asked.share, found.latency, found.predicted, found.latency_model.relative_error, found.architectures_timed, timer.form.precision,
                asked.dense_ms, placement,
            ),
        )  # fmt: skip

    def _latency(
        self, job: latency_search.LatencyProblem, timer: ArchitectureTimer, asked: "_Asked"
    ) -> tuple[latency_search.TimedPlan, Placement | None]:
        """A plan that meets a latency in the pruned model's own form; its placement where that needed other widths."""
        found = latency_search.find_plan(job, timer)
        dense, quantize = self.finetuned.trained.model, self.job.recipe.quantize
        pruned = surgery.apply(dense, found.plan)
        placed = place.find_placement(
            pruned, self.example_input, self.job.target, quantize.float_modules, quantize.search_seconds, self.job.work
        )
        own, _ = choose_shipped_form(placed, self.job.target)
        if own == timer.form:
            return found, None
        other = timer.with_form(own)
        final = latency_search.refine_plan(
            replace(job, other_budget_use=asked.rest(dense, job.search_space, other)), other, found
        )
        return final, None if final.plan == found.plan else placed.placement

    def _best(self, found: Sequence[CandidatePlan], own: tuple[int, int], at: InputResizer) -> CandidatePlan:
        """The one that a short training brings furthest on validation: what is lost at another size no weight tells."""
        recipe, trials = self.job.recipe, list[ImageSizeTrial]()
        spec = replace(recipe.recover, epochs=math.ceil(recipe.recover.epochs * TRIAL_EPOCH_SHARE))
        for one in found:
            size = one.reduced_image_size or own
            view, model = at(size), surgery.apply(self.finetuned.trained.model, one.surgery)
            # a search that is done again after it was cut may come to other widths
            folder = self.folder / f"trial-{size[0]}x{size[1]}-{files.digest(one.surgery)}"
            training_job = loop.TrainingJob(
                dataset=view.dataset, spec=spec, augment=view.augment, seed=recipe.seed + 1,
                label=f"fit: {size[0]}x{size[1]}", folder=folder, balance=recipe.balance, teacher=view.trained.model,
            )  # fmt: skip
            reached = finetune.validation_objective(
                vars(loop.train(model, training_job, keep_start=True)), recipe.balance
            )
            latency = one.latency_fit.latency if one.latency_fit else None
            trials.append(ImageSizeTrial(size, latency, reached, len(view.dataset.splits["val"])))
            progress.log(f"fit: {size[0]}x{size[1]} reaches {reached:.4f} on validation after {spec.epochs} epochs")
        for leftover in self.folder.glob("trial-*"):
            shutil.rmtree(leftover)
        chosen = max(range(len(found)), key=lambda index: trials[index].reached)
        return replace(found[chosen], size_trials=tuple(trials))


def _takes(model: nn.Module, size: tuple[int, int]) -> bool:
    """Whether a model runs, and trains, on pictures of a size."""
    training = copy.deepcopy(model).train()  # where auxiliary heads run too
    try:
        with torch.no_grad():
            training(torch.zeros(2, 3, *size))
            training.eval()(torch.zeros(1, 3, *size))
    except (RuntimeError, AssertionError, ValueError):  # a flatten, an embedding of positions, one value a channel
        return False
    return True


@dataclass(frozen=True)
class _Asked:
    """The limits, in the dense model's terms."""

    limits: Mapping[Quantity, BudgetLimit]
    share: float | None  # of the dense model's latency
    dense_ms: float
    whole: Sequence[Layer]  # of the dense model, with pictures of its own size
    timer: ArchitectureTimer | None  # of the dense model as it would ship

    def rest(
        self, dense: nn.Module, options: width_search.SearchSpace, timer: ArchitectureTimer | None
    ) -> width_search.CostFunction:
        """What is used of the limits other than latency, the largest share of all, in the form that `timer` ships.

        Raises:
            OutOfReach: one of them cannot be met; says what can.
        """
        used: list[width_search.CostFunction] = []
        for what, amount in self.limits.items():
            if what == "latency":
                continue
            if what == "size":
                assert self.timer is not None
                assert timer is not None
                most, cost = float(self.timer.measure_size_bytes(Surgery())), fit_size_model(timer, dense, options)
            else:
                cost = profile.total_macs if what == "macs" else profile.total_parameters
                most = cost(self.whole)
            limit = amount.as_share_of(most) * most
            least = cost(options.remaining_layers(options.narrowest))
            limit *= AIMED_SIZE_SHARE if what == "size" else 1.0
            if least > limit:
                raise BudgetUnreachable(
                    f"the budget of {what} cannot be met by pruning: it allows {limit:,.0f} of the dense model's "
                    f"{most:,.0f}, and {least:,.0f} is the nearest that can be reached; raise [prune] max_share, "
                    "protect less, or choose a smaller model"
                )
            used.append(lambda layers, cost=cost, limit=limit: cost(layers) / limit)  # type: ignore[misc]
        return lambda layers: max((share(layers) for share in used), default=0.0)


def fit_size_model(
    timer: ArchitectureTimer, dense: nn.Module, options: width_search.SearchSpace
) -> width_search.CostFunction:
    """Bytes of the files of an architecture, from those of a few: by parameters, by channels and by layers."""
    samples = [options.unpruned, options.narrowest, *latency_search.sample_architectures(options, SIZE_MODEL_SAMPLES)]
    bytes_of = [float(timer.measure_size_bytes(surgery.build(dense, options, choice))) for choice in samples]

    def features(layers: Sequence[Layer]) -> np.ndarray:
        return np.array([profile.total_parameters(layers), sum(layer.outputs for layer in layers), len(layers), 1.0])

    rates, *_ = np.linalg.lstsq(np.stack([features(options.remaining_layers(choice)) for choice in samples]), bytes_of)
    return lambda layers: float(features(layers) @ rates)


def choose_shipped_form(placed: PlacementResult, target: Target, *, timed: bool = True) -> tuple[ShippedForm, float]:
    """The form in which a model would be sent to the target, and its milliseconds there.

    Raises:
        ToolchainError: nothing was timed, because this machine cannot or the recipe says so, and it has to be.
    """
    floating, best = placed.fastest_float, placed.fastest_int8
    if floating is None or best is None:
        if timed:
            raise ToolchainError(
                f"a latency budget needs the target {target.name} to be timed; this machine cannot, or search_seconds is "
                "0: give [prune] ratio or a budget of macs instead"
            )
        return ShippedForm("int8" if "int8" in target.precisions else target.precisions[0], placed.placement), math.nan
    if floating.speedup > best.speedup:
        return ShippedForm(floating.precision, Placement()), floating.latency_ms
    return ShippedForm("int8", placed.placement), best.latency_ms
