"""The lock of a run: what is pruned and which Q/DQ placement is used, as data, so that a later run needs no search.

`export` writes it beside the report. A lock that lies beside the recipe, or is named with `--lock`, is replayed.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from toolchain.config import budget_limits, read_config
from toolchain.config.job import Job
from toolchain.config.recipe import Budget, Recipe
from toolchain.config.target import Target
from toolchain.core import files, progress
from toolchain.core.errors import ToolchainError
from toolchain.core.types import NetworkName, Precision
from toolchain.measure import machine
from toolchain.models.profile import Layer
from toolchain.quantization.placement_result import PlacementResult
from toolchain.search.pruning_plan import Lock, PruningPlan
from toolchain.training.trained_model import TrainedModel

SCHEMA = 1
# settings of [prune] that decide what is removed
PRUNE_SETTINGS = ("ratio", "criterion", "ranking", "protect", "depth", "max_share", "resolution")
# values at which older versions wrote locks without the setting's name
DEFAULTS_OF_OLDER_LOCKS: Mapping[str, Any] = {"prune.resolution": 1.0}
SEARCH_AGAIN = ". Remove the lock to search again"


def record_plan(
    job: Job,
    plan: PruningPlan,
    ranked: TrainedModel,
    placed: Mapping[NetworkName, PlacementResult],
    size: tuple[int, int],
) -> None:
    """Write the lock of a run to its job's folder.

    Args:
        job: recipe, target and budget that the decisions were made for.
        plan: the pruning plan.
        ranked: the model whose weights ranked the channels.
        placed: the Q/DQ placement of each network.
        size: height and width of the dense model's images, pixels.
    """
    recipe, target = job.recipe, job.target
    write(
        job.folder / file_name(recipe, target),
        Lock(
            schema=SCHEMA, recipe=recipe.name, target=target.name, runtime=target.runtime, image_size=size,
            asked=collect_settings(recipe, job.budget), layers=tuple(plan.layers_before), weights=ranked.key,
            surgery=plan.surgery, fitted=plan.latency_fit, resized=plan.reduced_image_size, dense=plan.dense_precision,
            placements={name: result.placement for name, result in placed.items()}, versions=machine.versions(target),
        ),
    )  # fmt: skip


def file_name(recipe: Recipe, target: Target) -> str:
    """Return the name of the lock that belongs to a recipe and a target."""
    return f"{recipe.name}.{target.name}.lock.json"


def collect_settings(recipe: Recipe, budget: Budget) -> dict[str, Any]:
    """Return the settings and budgets that decide how much is pruned, as the lock keeps them."""
    settings = {f"prune.{name}": getattr(recipe.prune, name) for name in PRUNE_SETTINGS}
    budgets = {f"budget.{quantity}": text for quantity, text in budget_limits.collect_limits(budget).items()}
    collected: dict[str, Any] = files.to_jsonable(
        {**settings, **budgets, "quantize.float_modules": recipe.quantize.float_modules}
    )
    return collected


def write(path: Path, lock: Lock) -> None:
    """Write a lock, whole or not at all."""
    files.write_json(path, lock)


def record_shipped_precision(path: Path, precision: Precision) -> None:
    """Add the precision that shipped to a lock that the run has written."""
    write(path, replace(read(path), ships=precision))


def read(path: Path) -> Lock:
    """Read a lock.

    Raises:
        ToolchainError: the file is missing, not a lock, or has another schema.
    """
    try:
        content = files.read_json(path)
    except ToolchainError:
        if not path.is_file():
            raise
        content = None
    if not isinstance(content, dict) or "schema" not in content:
        raise ToolchainError(f"{path} is not a lock. `toolchain export` writes a lock beside its report")
    if content["schema"] != SCHEMA:
        raise ToolchainError(f"{path}: schema = {content['schema']!r}; this version reads schema = {SCHEMA}")
    lock: Lock = read_config.to_dataclass(Lock, content, str(path))
    return lock


def find(job: Job) -> Lock | None:
    """Return the lock that the user named, or the one beside the recipe if it was written for the same settings.

    Raises:
        ToolchainError: the named file is not a lock, or was written for another target or other settings.
    """
    recipe, target, named = job.recipe, job.target, job.lock_file
    path = named or (job.recipe_folder / file_name(recipe, target) if job.recipe_folder else None)
    if path is None or not (named or path.exists()):
        return None
    lock = read(path)
    difference = find_difference(lock, recipe, target, job.budget)
    if difference and named:
        raise ToolchainError(f"{path}: {difference}. Give the lock of this recipe and target, or none to search again")
    if difference:
        progress.log(f"lock: {path.name} is not used: {difference}")
        return None
    progress.log(f"lock: pruning plan and Q/DQ placement are taken from {path.name}")
    return lock


def find_difference(lock: Lock, recipe: Recipe, target: Target, budget: Budget) -> str:
    """Return the first setting in which a lock differs from the job, as a sentence; "" where it fits.

    `check_model` compares the model.
    """
    if lock.target != target.name or lock.runtime != target.runtime:
        return f"it was made for the target {lock.target} ({lock.runtime}), this is {target.name} ({target.runtime})"
    settings = collect_settings(recipe, budget)
    locked = {**DEFAULTS_OF_OLDER_LOCKS, **lock.asked}
    for name in sorted({*settings, *locked}):
        if settings.get(name) != locked.get(name):
            return f"it was made with {name} = {locked.get(name)!r}, now it is {settings.get(name)!r}"
    return ""


def check_model(lock: Lock, layers: Sequence[Layer], image_size: tuple[int, int]) -> None:
    """Check that a lock was written for this model at this image size.

    Args:
        lock: the lock.
        layers: of the dense model.
        image_size: height and width of its images, pixels.

    Raises:
        ToolchainError: it was written for another model or size; names the first layer that differs.
    """
    if tuple(image_size) != tuple(lock.image_size):
        (locked_height, locked_width), (height, width) = lock.image_size, image_size
        raise ToolchainError(
            f"the lock was made for images of {locked_height}x{locked_width}, these are {height}x{width}{SEARCH_AGAIN}"
        )
    for locked, layer in zip(lock.layers, layers, strict=False):
        if locked.name != layer.name:
            raise ToolchainError(f"the lock has a layer {locked.name} where this model has {layer.name}{SEARCH_AGAIN}")
        # the last layer may differ: a lock is valid for any number of classes
        differs = (locked.kind, locked.inputs, locked.outputs) != (layer.kind, layer.inputs, layer.outputs)
        if differs and locked is not lock.layers[-1]:
            raise ToolchainError(
                f"the lock was made for another model: its layer {locked.name} is {locked.kind}, {locked.inputs} -> "
                f"{locked.outputs}; here it is {layer.kind}, {layer.inputs} -> {layer.outputs}{SEARCH_AGAIN}"
            )
    if len(layers) != len(lock.layers):
        raise ToolchainError(
            f"the lock was made for {len(lock.layers)} layers, this model has {len(layers)}{SEARCH_AGAIN}"
        )


def match_model(lock: Lock | None, layers: Sequence[Layer], image_size: tuple[int, int], *, named: bool) -> Lock | None:
    """Return the lock, or None where it only lay beside the recipe and belongs to another model or image size.

    Args:
        lock: the lock, or None.
        layers: of the dense model.
        image_size: height and width of its images, pixels.
        named: whether the user named the lock.

    Raises:
        ToolchainError: as for `check_model`, if the user named the lock.
    """
    if lock is None:
        return None
    try:
        check_model(lock, layers, image_size)
    except ToolchainError as reason:
        if named:
            raise
        progress.log(f"lock: not used: {str(reason).removesuffix(SEARCH_AGAIN)}")
        return None
    return lock
