"""Ways to make a pruning plan: for a ratio of the multiply-accumulates, for budgets, or from a lock.

A latency budget is met by timing untrained architectures in the target's runtime: first in the form in which the dense
model would ship, then, once a pruned model is known, in its own. Weights do not tell which image size loses the least
accuracy, so where the recipe allows several, a short training at each decides.
"""

import copy
import math
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor, nn

from toolchain.config.budget_limits import BudgetLimit, Quantity
from toolchain.config.job import Job
from toolchain.core import files, progress
from toolchain.export import prune_graph
from toolchain.models import profile
from toolchain.models.profile import Layer
from toolchain.pruning import pruning_rounds, search_space, surgery, width_search
from toolchain.pruning.channel_ranking import ChannelCriterion
from toolchain.pruning.surgery import Surgery
from toolchain.pruning.width_search import CostFunction, SearchSpace
from toolchain.quantization.placement import Placement
from toolchain.quantization.placement_result import PlacementResult
from toolchain.search import architecture_timing, file_size_model, latency_search, place
from toolchain.search.architecture_timing import ArchitectureTimer
from toolchain.search.latency_search import BudgetUnreachable, LatencyFit, LatencyProblem, TimedPlan
from toolchain.search.pruning_plan import CandidatePlan, ImageSizeTrial, Lock
from toolchain.training import finetune, input_size, loop
from toolchain.training.finetune import FinetunedModel

DEFAULT_RATIO = 0.5  # of the multiply-accumulates, where neither ratio nor budget is given
AIMED_SIZE_SHARE = 0.98  # of a size budget, because the size model is not exact
TRIAL_EPOCH_SHARE = 1 / 8  # of the recovery's epochs, in the short training that chooses an image size

InputResizer = Callable[[tuple[int, int]], FinetunedModel]  # height, width -> model and dataset at that image size


@dataclass(frozen=True)
class PruningPlanner:
    """Makes pruning plans for one dense model."""

    job: Job
    finetuned: FinetunedModel
    example_input: Tensor  # float32 [1, 3, height, width], of the image size that is planned for
    criterion: ChannelCriterion
    folder: Path  # for compiled candidates, timings and short trainings

    def replay_lock(self, lock: Lock) -> CandidatePlan:
        """Return the plan of a lock; if it ranked other weights, its widths with the channels ranked anew."""
        planned = lock.surgery
        if lock.weights != self.finetuned.trained.key and lock.surgery != Surgery():
            space = self.build_search_space(lock.surgery.dropped)
            widths = pruning_rounds.replay_widths(space, lock.surgery)
            planned = surgery.build(self.finetuned.trained.model, space, widths)
        return CandidatePlan(planned, lock.fitted, lock.resized, dense_precision=lock.dense)

    def plan_for_ratio(self) -> Surgery:
        """Return a plan that removes the recipe's ratio of the multiply-accumulates, or the default one."""
        spec = self.job.recipe.prune
        spec = spec if spec.ratio is not None else replace(spec, ratio=DEFAULT_RATIO)
        return search_space.plan_for_ratio(
            self.finetuned.trained.model, self.example_input, head=self.finetuned.head, spec=spec,
            alignment=self.job.target.alignment, criterion=self.criterion.score, gradients=self.criterion.gradients,
        )  # fmt: skip

    def build_search_space(self, blocks: Sequence[str] = ()) -> SearchSpace:
        """Return what may be removed: the model's pruning groups, and those of its residual `blocks`."""
        return search_space.build_search_space(
            self.finetuned.trained.model, self.example_input, head=self.finetuned.head, spec=self.job.recipe.prune,
            alignment=self.job.target.alignment, criterion=self.criterion.score, gradients=self.criterion.gradients,
            blocks=blocks,
        )  # fmt: skip

    def plan_for_budget(
        self, limits: Mapping[Quantity, BudgetLimit], placed: PlacementResult | None, resize: InputResizer | None
    ) -> CandidatePlan:
        """Return a plan that meets every limit, at the image size that loses the least accuracy.

        Args:
            limits: by the quantity that each bounds.
            placed: the dense model's placement; None where no limit needs compiled candidates.
            resize: gives the model and dataset at another image size; None keeps the size.

        Raises:
            BudgetUnreachable: a limit cannot be met at any image size; the message names the nearest that can.
        """
        latency, dense = limits.get("latency"), self.finetuned.trained.model
        form, dense_ms = None, 0.0
        if placed:
            form, dense_ms = architecture_timing.choose_shipped_form(placed, self.job.target, timed=latency is not None)
        latency_share = latency.as_share_of(dense_ms) if latency else None
        if latency_share is not None and latency_share >= 1 and len(limits) == 1:
            return CandidatePlan(Surgery())
        timer = ArchitectureTimer(dense, self.example_input, self.job.target, form, self.folder) if form else None
        dense_layers = profile.measure_layers(dense, self.example_input)
        terms = _BudgetTerms(limits, latency_share, dense_ms, dense_layers, timer)
        full_size = (self.example_input.shape[2], self.example_input.shape[3])
        smaller_sizes = self._list_smaller_sizes(full_size) if resize else []
        candidates, last_refusal = list[CandidatePlan](), None
        for size in (full_size, *smaller_sizes):
            if smaller_sizes:
                progress.log(f"fit: images of {size[0]}x{size[1]}")
            try:
                candidate = self._plan_at_size(size, terms)
            except BudgetUnreachable as reason:
                last_refusal = reason
                continue
            reduced_size = None if size == full_size else size
            precision = form.precision if form else None
            candidates.append(replace(candidate, reduced_image_size=reduced_size, dense_precision=precision))
        if timer:
            timer.remove_candidates()
        if not candidates:
            assert last_refusal is not None
            raise last_refusal
        if len(candidates) == 1 or resize is None:
            return candidates[0]
        return self._choose_image_size(candidates, full_size, resize)

    def _list_smaller_sizes(self, full_size: tuple[int, int]) -> list[tuple[int, int]]:
        """Return the smaller image sizes that the recipe allows and the model accepts."""
        allowed = input_size.list_smaller_sizes(full_size, self.job.recipe.prune.resolution)
        sizes = [size for size in allowed if _accepts_size(self.finetuned.trained.model, size)]
        if allowed and not sizes:
            progress.log(f"fit: this model accepts no images smaller than {full_size[0]}x{full_size[1]}")
        return sizes

    def _plan_at_size(self, size: tuple[int, int], terms: "_BudgetTerms") -> CandidatePlan:
        """Return a plan that meets every limit at one image size."""
        dense, planner = self.finetuned.trained.model, replace(self, example_input=torch.zeros(1, 3, *size))
        timer = terms.timer
        if timer and size != tuple(self.example_input.shape[2:]):
            timer = timer.with_input(planner.example_input)
        droppable: Sequence[str] = ()
        if timer and terms.latency_share is not None and self.job.recipe.prune.depth:
            droppable = prune_graph.find_droppable_blocks(timer.graph)
        space = planner.build_search_space(droppable)
        other_budget_use = terms.other_budget_use(dense, space, timer)
        if terms.latency_share is None or timer is None:
            return CandidatePlan(surgery.build(dense, space, width_search.search(space, other_budget_use, 1.0)))
        problem = LatencyProblem(
            space, lambda subnetwork: surgery.build(dense, space, subnetwork), terms.latency_share, other_budget_use
        )
        timed, placement = planner._plan_for_latency(problem, timer, terms)
        fit = LatencyFit(
            limit=terms.latency_share, latency=timed.latency, predicted=timed.predicted,
            error=timed.latency_model.relative_error, timed=timed.architectures_timed, dense=timer.form.precision,
            dense_ms=terms.dense_ms, placement=placement,
        )  # fmt: skip
        return CandidatePlan(timed.plan, fit)

    def _plan_for_latency(
        self, problem: LatencyProblem, timer: ArchitectureTimer, terms: "_BudgetTerms"
    ) -> tuple[TimedPlan, Placement | None]:
        """Return a plan that meets the latency in the pruned model's own form.

        Also its placement, where the search changed the widths afterwards; else None, and it is searched for later.
        """
        first = latency_search.find_plan(problem, timer)
        dense, quantize = self.finetuned.trained.model, self.job.recipe.quantize
        pruned = surgery.apply(dense, first.plan)
        placed = place.find_placement(
            pruned, self.example_input, self.job.target, quantize.float_modules, quantize.search_seconds, self.job.work
        )
        pruned_form, _ = architecture_timing.choose_shipped_form(placed, self.job.target)
        if pruned_form == timer.form:
            return first, None
        pruned_timer = timer.with_form(pruned_form)
        other_budget_use = terms.other_budget_use(dense, problem.search_space, pruned_timer)
        refined = latency_search.refine_plan(replace(problem, other_budget_use=other_budget_use), pruned_timer, first)
        return refined, None if refined.plan == first.plan else placed.placement

    def _choose_image_size(
        self, candidates: Sequence[CandidatePlan], full_size: tuple[int, int], resize: InputResizer
    ) -> CandidatePlan:
        """Return the candidate that scores best on validation after a short training at its image size."""
        recipe, trials = self.job.recipe, list[ImageSizeTrial]()
        spec = replace(recipe.recover, epochs=math.ceil(recipe.recover.epochs * TRIAL_EPOCH_SHARE))
        for candidate in candidates:
            size = candidate.reduced_image_size or full_size
            view, model = resize(size), surgery.apply(self.finetuned.trained.model, candidate.surgery)
            # the digest, because a search repeated after an interruption may end with other widths
            folder = self.folder / f"trial-{size[0]}x{size[1]}-{files.digest(candidate.surgery)}"
            training_job = loop.TrainingJob(
                dataset=view.dataset, spec=spec, augment=view.augment, seed=recipe.seed + 1,
                label=f"fit: {size[0]}x{size[1]}", folder=folder, balance=recipe.balance, teacher=view.trained.model,
            )  # fmt: skip
            training = loop.train(model, training_job, keep_start=True)
            reached = finetune.validation_objective(vars(training), recipe.balance)
            latency = candidate.latency_fit.latency if candidate.latency_fit else None
            trials.append(ImageSizeTrial(size, latency, reached, len(view.dataset.splits["val"])))
            progress.log(f"fit: {size[0]}x{size[1]} scores {reached:.4f} on validation after {spec.epochs} epochs")
        for leftover in self.folder.glob("trial-*"):
            shutil.rmtree(leftover)
        best = max(range(len(candidates)), key=lambda index: trials[index].reached)
        return replace(candidates[best], size_trials=tuple(trials))


def _accepts_size(model: nn.Module, size: tuple[int, int]) -> bool:
    """Return whether a model runs in training and in inference with images of a size: height, width."""
    trial = copy.deepcopy(model).train()  # auxiliary heads run only in training
    try:
        with torch.no_grad():
            trial(torch.zeros(2, 3, *size))
            trial.eval()(torch.zeros(1, 3, *size))
    # from a flatten before a linear layer, a position embedding, or batch norm over one value per channel
    except (RuntimeError, AssertionError, ValueError):
        return False
    return True


@dataclass(frozen=True)
class _BudgetTerms:
    """The limits, relative to the dense model."""

    limits: Mapping[Quantity, BudgetLimit]
    latency_share: float | None  # of the dense model's latency; None without a latency budget
    dense_ms: float
    dense_layers: Sequence[Layer]  # at the dense model's own image size
    timer: ArchitectureTimer | None  # of the dense model as it would ship

    def other_budget_use(self, dense: nn.Module, space: SearchSpace, timer: ArchitectureTimer | None) -> CostFunction:
        """Return the cost function of all limits but latency: the used share of the limit that is used most, 0..1.

        Args:
            dense: the dense model.
            space: what may be removed from it.
            timer: compiles pruned models in the form in which they would ship; needed for a size budget.

        Raises:
            BudgetUnreachable: a limit cannot be met; the message names the nearest that can.
        """
        used_shares: list[CostFunction] = []
        for quantity, budget in self.limits.items():
            if quantity == "latency":
                continue
            if quantity == "size":
                assert self.timer is not None
                assert timer is not None
                full = float(self.timer.measure_size_bytes(Surgery()))
                cost = file_size_model.fit(timer, dense, space)
            else:
                cost = profile.total_macs if quantity == "macs" else profile.total_parameters
                full = cost(self.dense_layers)
            limit = budget.as_share_of(full) * full
            limit *= AIMED_SIZE_SHARE if quantity == "size" else 1.0
            least = cost(space.remaining_layers(space.narrowest))
            if least > limit:
                raise BudgetUnreachable(
                    f"the {quantity} budget cannot be met by pruning: it allows {limit:,.0f} of the dense model's "
                    f"{full:,.0f}, and the nearest that can be reached is {least:,.0f}. Raise [prune] max_share, protect "
                    "fewer layers, or choose a smaller model"
                )
            used_shares.append(lambda layers, cost=cost, limit=limit: cost(layers) / limit)  # type: ignore[misc]
        return lambda layers: max((share(layers) for share in used_shares), default=0.0)
