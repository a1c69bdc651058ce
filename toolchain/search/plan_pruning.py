"""fit: dense model, target, budget -> what is cut and how large the pictures are, before much training is spent."""

import time

import torch
from torch import Tensor, nn

from toolchain.config import budget_limits
from toolchain.config.job import Job
from toolchain.config.recipe import Budget, Recipe
from toolchain.core import files, progress, stage_cache
from toolchain.core.errors import ToolchainError
from toolchain.core.types import NetworkName
from toolchain.data.decoded_dataset import Dataset
from toolchain.models import build, profile
from toolchain.pruning import channel_ranking, prune, search_space, surgery
from toolchain.search import lock as locks
from toolchain.search import place
from toolchain.search.planner import InputResizer, PruningPlanner
from toolchain.search.pruning_plan import CandidatePlan, ImageSizeTrial, Lock, PruningPlan, read_latency_fit
from toolchain.training.finetune import FinetunedModel
from toolchain.training.trained_model import TrainedModel

VERSION = 8
SURGERY_FILE = "surgery.json"
# of [prune], without a say in the plan: how to get there, what the model's key holds already, what is only reported
SETTINGS_NOT_IN_PLAN = {"rounds", "sparsity", "sparse_epochs", "sensitivity"}


def read_limits(
    recipe: Recipe, budget: Budget, *, locked: bool
) -> dict[budget_limits.Quantity, budget_limits.BudgetLimit]:
    """What the budget says of how far pruning goes, by what it bounds.

    Raises:
        ToolchainError: recipe and budget contradict each other.
    """
    spec = recipe.prune
    limits = {what: budget_limits.parse(what, text) for what, text in budget_limits.collect_limits(budget).items()}
    if limits and spec.ratio:
        raise ToolchainError(
            f"prune.ratio = {spec.ratio} and budget.{next(iter(limits))} both say how far to prune; remove one of them"
        )
    if "latency" in limits and not recipe.quantize.search_seconds and not locked:
        raise ToolchainError(
            f"budget.latency = {budget.latency!r} needs models to be timed, which quantize.search_seconds = 0 rules out; allow "
            "some seconds, or give [prune] ratio or a budget of macs instead"
        )
    if spec.resolution < 1 and not locked and (not limits or spec.ratio is not None):
        instead = f"leave prune.ratio = {spec.ratio} out" if limits else "give one, as with --latency 0.5x"
        raise ToolchainError(f"prune.resolution = {spec.resolution} is searched for a budget; {instead}")
    return limits


def check_model(job: Job, data: Dataset, lock: Lock | None) -> Lock | None:
    """Say what does not suit the model before it is trained; return the lock where it is for this model.

    Raises:
        ToolchainError: there is no such model or weights file, `protect` names no layer of it, or the lock that the user
            named is for another model.
    """
    recipe = job.recipe
    model = build.build_for_image_size(recipe.model, len(data.classes), data.example_input, recipe.reuse)
    layers = profile.measure_layers(model, data.example_input)
    search_space.check_protect_patterns(recipe.prune.protect, layers)
    return locks.match_model(lock, layers, data.preprocess.image_size, named=job.lock_file is not None)


def untrained_networks(
    plan: PruningPlan, dense: FinetunedModel, ranked: TrainedModel, view: FinetunedModel
) -> dict[NetworkName, tuple[nn.Module, Tensor]]:
    """Return the dense network and the planned one, if it is another, each with an example input.

    Args:
        ranked: the model that is cut.
        view: the dense model with images of the size that the pruned one takes.
    """
    networks: dict[NetworkName, tuple[nn.Module, Tensor]] = {
        "dense": (dense.trained.model, dense.dataset.example_input)
    }
    if plan.differs_from_dense:
        networks["pruned"] = (prune.apply_plan(ranked, plan.surgery).model, view.dataset.example_input)
    return networks


def run(job: Job, adapted: FinetunedModel, lock: Lock | None = None, at: InputResizer | None = None) -> PruningPlan:
    """Plans the surgery for the recipe's ratio or the budget, widths in multiples of the target's alignment.

    Args:
        adapted: the model to be cut, whose weights rank the channels; its calibration images, for criteria that ask
            what the loss does on them.
        lock: what was decided before; nothing is searched then. Channels are ranked anew where the weights are others.
        at: the job with pictures of another size; needed where the recipe allows smaller ones.

    Raises:
        ToolchainError: the ratio or budget cannot be reached, both are given, the model cannot be traced, or the lock is
            for another model.
    """
    recipe, target, work, image = job.recipe, job.target, job.work, adapted.dataset.example_input
    dense, spec = adapted.trained, recipe.prune
    limits = read_limits(recipe, job.budget, locked=lock is not None)
    searched = bool(limits) and spec.ratio is None
    placed = None
    if lock:
        locks.check_model(lock, profile.measure_layers(dense.model, image), (image.shape[2], image.shape[3]))
    elif searched and {"latency", "size"} & limits.keys():
        placed = place.find_placement(
            dense.model, image, target, recipe.quantize.float_modules, recipe.quantize.search_seconds, work
        )
    asked = {name: value for name, value in vars(spec).items() if name not in SETTINGS_NOT_IN_PLAN}
    key = files.digest(
        VERSION,
        dense.key,
        asked,
        limits,
        # untimed, a placement has no key: what the sizes of files depend on
        placed and (placed.key, placed.placement, target.runtime, target.scheme, target.precisions),
        *channel_ranking.cache_key_parts(adapted, spec),
        target.alignment,
        lock and lock.key,
        *((recipe.recover, recipe.balance, recipe.seed, adapted.augment) if spec.resolution < 1 else ()),
    )
    with stage_cache.open_stage(work, "fit", key) as stage:
        if stage.record is None:
            started = time.monotonic()
            search = PruningPlanner(
                job, adapted, image, channel_ranking.prepare_criterion(adapted, spec, work), stage.folder
            )
            if lock:
                found = search.replay_lock(lock)
            elif searched:
                found = search.plan_for_budget(limits, placed, at)
            else:
                found = CandidatePlan(search.plan_for_ratio())
            files.write_json(stage.folder / SURGERY_FILE, found.surgery)
            figures = {
                "fitted": found.latency_fit, "resized": found.reduced_image_size, "trials": found.size_trials, "dense": found.dense_precision
            }  # fmt: skip
            stage = stage_cache.finish(stage, started, figures)
        assert stage.record is not None
        # read back from its file, so that every run replays a plan and none carries one over in memory
        planned = surgery.read(stage.folder / SURGERY_FILE)
        fitted, resized = read_latency_fit(stage.record["fitted"]), stage.record["resized"]
        resized = tuple(resized) if resized else None
        trials = tuple(ImageSizeTrial(**{**row, "size": tuple(row["size"])}) for row in stage.record["trials"])
        before = profile.measure_layers(dense.model, image)
        seen = image if resized is None else torch.zeros(1, 3, *resized)
        after = profile.measure_layers(surgery.apply(dense.model, planned), seen)
    work_left = [profile.total_macs(sizes) for sizes in (before, after)]
    progress.log(
        f"fit: {work_left[0] / 1e6:.1f} M multiply-accumulates -> {work_left[1] / 1e6:.1f} M "
        f"({work_left[1] / work_left[0]:.0%})"
        + (f", pictures of {resized[0]}x{resized[1]}" if resized else "")
        + (f", {fitted.latency:.2f}x of the dense latency ({fitted.limit:.2f}x allowed)" if fitted else "")
    )
    return PruningPlan(planned, key, before, after, fitted, lock, resized, trials, stage.record["dense"])
