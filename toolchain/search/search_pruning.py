"""Plan the pruning: from the dense model, the target and the budget to the channels and blocks to remove, and the image size.

Comes before most of the training. The plan is data: later steps replay it on the trained weights.
"""

import time
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from toolchain.config import budget_limits
from toolchain.config.budget_limits import BudgetLimit, Quantity
from toolchain.config.job import Job
from toolchain.config.recipe import Budget, Recipe
from toolchain.core import files, progress, stage_cache
from toolchain.core.errors import ToolchainError
from toolchain.core.types import NetworkName
from toolchain.data.decoded_dataset import Dataset
from toolchain.models import build, profile
from toolchain.models.sources import user_code
from toolchain.pruning import channel_ranking, prune, search_space, surgery
from toolchain.pruning.surgery import Surgery
from toolchain.quantization import pt2e
from toolchain.quantization.placement_result import PlacementResult
from toolchain.search import lock_file, place
from toolchain.search.budget_planner import InputResizer, PruningPlanner
from toolchain.search.pruning_plan import CandidatePlan, ImageSizeTrial, Lock, PruningPlan, read_latency_fit
from toolchain.training.finetune import FinetunedModel
from toolchain.training.trained_model import TrainedModel

VERSION = 8
SURGERY_FILE = "surgery.json"
# settings of [prune] that do not change the plan: how to reach it, what the model's key covers, what is only reported
SETTINGS_NOT_IN_PLAN = {"rounds", "sparsity", "sparse_epochs", "sensitivity"}


def read_limits(recipe: Recipe, budget: Budget, *, locked: bool) -> dict[Quantity, BudgetLimit]:
    """Return the limits that the budget sets to pruning, by the quantity that each bounds.

    Args:
        recipe: its [prune] and [quantize] settings must agree with the budget.
        budget: from the recipe, the target or the command line.
        locked: whether a lock is replayed, which needs no timing and no search.

    Raises:
        ToolchainError: recipe and budget contradict each other.
    """
    spec = recipe.prune
    limits = {
        quantity: budget_limits.parse(quantity, text) for quantity, text in budget_limits.collect_limits(budget).items()
    }
    if limits and spec.ratio:
        raise ToolchainError(
            f"prune.ratio = {spec.ratio} and budget.{next(iter(limits))} both say how far to prune. Remove one of them"
        )
    if "latency" in limits and not recipe.quantize.search_seconds and not locked:
        raise ToolchainError(
            f"budget.latency = {budget.latency!r} needs candidates to be timed, and quantize.search_seconds = 0 allows no "
            "time for it. Allow some seconds, or give [prune] ratio or a macs budget instead"
        )
    if spec.resolution < 1 and not locked and (not limits or spec.ratio is not None):
        advice = f"Remove prune.ratio = {spec.ratio}" if limits else "Give a budget, such as --latency 0.5x"
        raise ToolchainError(f"prune.resolution = {spec.resolution} needs a budget to search for. {advice}")
    return limits


def check_model(job: Job, data: Dataset, lock: Lock | None) -> Lock | None:
    """Check the settings against the model before it is trained; return the lock if it belongs to this model.

    Args:
        job: names the model, and the lock if the user gave one.
        data: gives the classes and the size of the images.
        lock: the user's, or the one beside the recipe.

    Raises:
        ToolchainError: there is no such model or weights file, `protect` matches no layer, a model of the user's cannot be
            exported, or the lock that the user named belongs to another model.
    """
    recipe = job.recipe
    model = build.build_for_image_size(recipe.model, len(data.classes), data.example_input, recipe.reuse)
    if user_code.find_folder(model):  # what torch cannot export is said before the training
        pt2e.prepare(model, data.example_input, None, job.target.scheme)
    layers = profile.measure_layers(model, data.example_input)
    search_space.check_protect_patterns(recipe.prune.protect, layers)
    return lock_file.match_model(lock, layers, data.preprocess.image_size, named=job.lock_file is not None)


def untrained_networks(
    plan: PruningPlan, dense: FinetunedModel, ranked: TrainedModel, view: FinetunedModel
) -> dict[NetworkName, tuple[nn.Module, Tensor]]:
    """Return the dense network, and the pruned one if the plan changes anything, each with an example input.

    Args:
        plan: what is removed, and the image size.
        dense: the dense model with images of its own size.
        ranked: the model to prune, whose weights ranked the channels.
        view: the dense model with images of the pruned model's size.
    """
    networks: dict[NetworkName, tuple[nn.Module, Tensor]] = {
        "dense": (dense.trained.model, dense.dataset.example_input)
    }
    if plan.differs_from_dense:
        networks["pruned"] = (prune.apply_plan(ranked, plan.surgery).model, view.dataset.example_input)
    return networks


def run(
    job: Job, finetuned: FinetunedModel, lock: Lock | None = None, resize: InputResizer | None = None
) -> PruningPlan:
    """Plan the surgery for the recipe's ratio or the budget, with widths in multiples of the target's alignment.

    Args:
        job: recipe, target and budget.
        finetuned: the model to prune, whose weights rank the channels, and its dataset: criteria that need gradients
            take them on its calibration images.
        lock: replayed instead of a search. If it ranked other weights, its widths stay and the channels are ranked anew.
        resize: gives the model and dataset at another image size; needed where the recipe allows smaller images.

    Raises:
        ToolchainError: the ratio or budget cannot be met, both are given, the model cannot be traced, or the lock
            belongs to another model.
    """
    recipe, image = job.recipe, finetuned.dataset.example_input
    limits = read_limits(recipe, job.budget, locked=lock is not None)
    has_search = bool(limits) and recipe.prune.ratio is None
    placed = None
    if lock:
        layers = profile.measure_layers(finetuned.trained.model, image)
        lock_file.check_model(lock, layers, (image.shape[2], image.shape[3]))
    elif has_search and {"latency", "size"} & limits.keys():
        quantize = recipe.quantize
        placed = place.find_placement(
            finetuned.trained.model, image, job.target, quantize.float_modules, quantize.search_seconds, job.work
        )
    key = _compute_key(job, finetuned, limits, placed, lock)
    with stage_cache.open_stage(job.work, "fit", key) as stage:
        if stage.record is None:
            started = time.monotonic()
            if recipe.prune.ratio == 0 and not lock:
                candidate = CandidatePlan(Surgery())  # ranking channels would take gradients and decide nothing
            else:
                criterion = channel_ranking.prepare_criterion(finetuned, recipe.prune, job.work)
                planner = PruningPlanner(job, finetuned, image, criterion, stage.folder)
                if lock:
                    candidate = planner.replay_lock(lock)
                elif has_search:
                    candidate = planner.plan_for_budget(limits, placed, resize)
                else:
                    candidate = CandidatePlan(planner.plan_for_ratio())
            files.write_json(stage.folder / SURGERY_FILE, candidate.surgery)
            figures = {
                "fitted": candidate.latency_fit, "resized": candidate.reduced_image_size, "trials": candidate.size_trials,
                "dense": candidate.dense_precision,
            }  # fmt: skip
            stage = stage_cache.finish(stage, started, figures)
        plan = _read_plan(stage, key, finetuned, lock)
    progress.log(_describe(plan))
    return plan


def _compute_key(
    job: Job, finetuned: FinetunedModel, limits: Mapping[Quantity, BudgetLimit], placed: PlacementResult | None,
    lock: Lock | None,
) -> str:  # fmt: skip
    recipe, target = job.recipe, job.target
    settings = {name: value for name, value in vars(recipe.prune).items() if name not in SETTINGS_NOT_IN_PLAN}
    return files.digest(
        VERSION,
        finetuned.trained.key,
        settings,
        limits,
        # a placement that was not timed has no key, so the settings that file sizes depend on are listed beside it
        placed and (placed.key, placed.placement, target.runtime, target.scheme, target.precisions),
        *channel_ranking.cache_key_parts(finetuned, recipe.prune),
        target.alignment,
        lock and lock.key,
        *((recipe.recover, recipe.balance, recipe.seed, finetuned.augment) if recipe.prune.resolution < 1 else ()),
    )


def _read_plan(stage: stage_cache.CachedStage, key: str, finetuned: FinetunedModel, lock: Lock | None) -> PruningPlan:
    """Return the plan of a finished stage, read from its files, so that a first run and a cached one give the same."""
    assert stage.record is not None
    planned = surgery.read(stage.folder / SURGERY_FILE)
    resized = stage.record["resized"]
    dense, image = finetuned.trained.model, finetuned.dataset.example_input
    pruned_image = torch.zeros(1, 3, *resized) if resized else image
    return PruningPlan(
        surgery=planned, key=key, layers_before=profile.measure_layers(dense, image),
        layers_after=profile.measure_layers(surgery.apply(dense, planned), pruned_image),
        latency_fit=read_latency_fit(stage.record["fitted"]), lock=lock,
        reduced_image_size=tuple(resized) if resized else None,
        size_trials=tuple(ImageSizeTrial(**{**row, "size": tuple(row["size"])}) for row in stage.record["trials"]),
        dense_precision=stage.record["dense"],
    )  # fmt: skip


def _describe(plan: PruningPlan) -> str:
    before, after = profile.total_macs(plan.layers_before), profile.total_macs(plan.layers_after)
    size, fit = plan.reduced_image_size, plan.latency_fit
    return (
        f"fit: {before / 1e6:.1f} M multiply-accumulates -> {after / 1e6:.1f} M ({after / before:.0%})"
        + (f", images of {size[0]}x{size[1]}" if size else "")
        + (f", {fit.latency:.2f}x the latency of the dense model ({fit.limit:.2f}x allowed)" if fit else "")
    )
