"""A lock: what was cut and what runs in integers, as data, from which the same architecture is made without a search.

`export` writes one beside its report. Put beside the recipe, or named with `--lock`, it is replayed.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from toolchain.config import budget_limits, toml_files
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
# of [prune], which decide what is cut
PRUNE_SETTINGS = ("ratio", "criterion", "ranking", "protect", "depth", "max_share", "resolution")
DEFAULTS_OF_OLDER_LOCKS: Mapping[str, Any] = {
    "prune.resolution": 1.0
}  # settings that older locks do not name, as they were then


def record_plan(
    job: Job,
    plan: PruningPlan,
    start: TrainedModel,
    placed: Mapping[NetworkName, PlacementResult],
    size: tuple[int, int],
) -> None:
    """Writes down what was decided, so that the same architecture can be made without a search.

    Args:
        start: the model whose weights ranked the channels.
        placed: the placement of each architecture.
        size: of the dense model's images: height, width.
    """
    recipe, target = job.recipe, job.target
    write(
        job.folder / file_name(recipe, target),
        Lock(
            schema=SCHEMA, recipe=recipe.name, target=target.name, runtime=target.runtime,
            image_size=size, asked=collect_settings(recipe, job.budget), layers=tuple(plan.layers_before),
            weights=start.key, surgery=plan.surgery, fitted=plan.latency_fit, resized=plan.reduced_image_size, dense=plan.dense_precision,
            placements={name: one.placement for name, one in placed.items()}, versions=machine.versions(target),
        ),
    )  # fmt: skip


def file_name(recipe: Recipe, target: Target) -> str:
    """Of the lock that belongs to a recipe and a target."""
    return f"{recipe.name}.{target.name}.lock.json"


def collect_settings(recipe: Recipe, budget: Budget) -> dict[str, Any]:
    """Settings and budgets that decide how much is cut, as a lock keeps them."""
    settings = {f"prune.{name}": getattr(recipe.prune, name) for name in PRUNE_SETTINGS}
    wanted = {f"budget.{name}": text for name, text in budget_limits.collect_limits(budget).items()}
    found: dict[str, Any] = files.to_jsonable(
        {**settings, **wanted, "quantize.float_modules": recipe.quantize.float_modules}
    )
    return found


def write(path: Path, lock: Lock) -> None:
    """Writes a lock, or nothing."""
    files.write_json(path, lock)


def record_shipped_precision(path: Path, ships: Precision) -> None:
    """Adds to a lock that was just written which form shipped."""
    write(path, replace(read(path), ships=ships))


def read(path: Path) -> Lock:
    """Reads a lock.

    Raises:
        ToolchainError: it is missing, no lock, or of another schema.
    """
    try:
        content = files.read_json(path)
    except ToolchainError:
        if not path.is_file():
            raise
        content = None
    if not isinstance(content, dict) or "schema" not in content:
        raise ToolchainError(f"{path} is no lock; `toolchain export` writes them beside its report")
    if content["schema"] != SCHEMA:
        raise ToolchainError(f"{path}: schema = {content['schema']!r}; this version reads schema = {SCHEMA}")
    lock: Lock = toml_files.to_dataclass(Lock, content, str(path))
    return lock


def find(job: Job) -> Lock | None:
    """The lock that was asked for, or the one beside the recipe where that is for the same settings.

    Raises:
        ToolchainError: the lock that was asked for is none, or was made for something else.
    """
    recipe, target, named = job.recipe, job.target, job.lock_file
    path = named or (job.recipe_folder / file_name(recipe, target) if job.recipe_folder else None)
    if path is None or not (named or path.exists()):
        return None
    lock = read(path)
    other = find_difference(lock, recipe, target, job.budget)
    if other and named:
        raise ToolchainError(f"{path}: {other}; give the lock that belongs to it, or none to search again")
    if other:
        progress.log(f"lock: {path.name} is left aside: {other}")
        return None
    progress.log(f"lock: {path.name} says what is cut and what runs in integers")
    return lock


def find_difference(lock: Lock, recipe: Recipe, target: Target, budget: Budget) -> str:
    """The first thing that a lock was made differently for; "" where it fits. The model is compared by `check`."""
    if lock.target != target.name or lock.runtime != target.runtime:
        return f"it was made for the target {lock.target} ({lock.runtime}), this is {target.name} ({target.runtime})"
    now = collect_settings(recipe, budget)
    then = {**DEFAULTS_OF_OLDER_LOCKS, **lock.asked}
    for name in sorted({*now, *then}):
        if now.get(name) != then.get(name):
            return f"it was made with {name} = {then.get(name)!r}, now it is {now.get(name)!r}"
    return ""


def check_model(lock: Lock, layers: Sequence[Layer], image_size: tuple[int, int]) -> None:
    """Whether a lock is for this model at this image size.

    Raises:
        ToolchainError: it is not; names the first layer that differs.
    """
    if tuple(image_size) != tuple(lock.image_size):
        (h, w), (height, width) = lock.image_size, image_size
        raise ToolchainError(f"the lock was made for images of {h}x{w}, these are {height}x{width}{_AGAIN}")
    for then, now in zip(lock.layers, layers, strict=False):
        if then.name != now.name:
            raise ToolchainError(f"the lock has a layer {then.name} where this model has {now.name}{_AGAIN}")
        # another number of classes changes nothing that a lock decides
        if then is not lock.layers[-1] and (then.kind, then.inputs, then.outputs) != (
            now.kind,
            now.inputs,
            now.outputs,
        ):
            raise ToolchainError(
                f"the lock was made for another model: its layer {then.name} is {then.kind}, {then.inputs} -> "
                f"{then.outputs}; here it is {now.kind}, {now.inputs} -> {now.outputs}{_AGAIN}"
            )
    if len(layers) != len(lock.layers):
        raise ToolchainError(f"the lock was made for {len(lock.layers)} layers, this model has {len(layers)}{_AGAIN}")


def match_model(lock: Lock | None, layers: Sequence[Layer], image_size: tuple[int, int], *, named: bool) -> Lock | None:
    """The lock, or None where it only lay beside the recipe and is for another model or size of pictures.

    Raises:
        ToolchainError: as `check`, of one that was asked for.
    """
    if lock is None:
        return None
    try:
        check_model(lock, layers, image_size)
    except ToolchainError as reason:
        if named:
            raise
        progress.log(f"lock: left aside: {str(reason).removesuffix(_AGAIN)}")
        return None
    return lock


_AGAIN = "; remove the lock to search again"
