"""place: a model's structure, target -> what runs in integers, by latency measured in the target's own runtime.

Decided before anything is trained, kept as data, and not searched again for the same structure on the same machine.
"""

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from toolchain.config import toml_files
from toolchain.config.job import Job
from toolchain.config.target import Target
from toolchain.core import files, progress, registry, stage_cache
from toolchain.core.errors import ToolchainError
from toolchain.core.types import NetworkName
from toolchain.export import to_onnx
from toolchain.measure import machine
from toolchain.quantization import pt2e
from toolchain.quantization.placement import Placement
from toolchain.quantization.placement_result import PlacementResult, TimedPlacement
from toolchain.search.placement_search import PlacementSearch

VERSION = 7


def run(
    job: Job, models: Mapping[NetworkName, tuple[nn.Module, Tensor]], fixed: Mapping[NetworkName, Placement],
) -> dict[NetworkName, PlacementResult]:  # fmt: skip
    """The placement of each architecture, searched for where it is not `fixed`.

    Args:
        models: each with an example input, float32 [1, 3, height, width].
        fixed: what is decided already.

    Raises:
        ToolchainError: as `find_placement`; or a name in the recipe's `float_modules` is no module of the model.
    """
    target, work, quantize = job.target, job.work, job.recipe.quantize
    _check_names(models["dense"][0], quantize.float_modules)
    found: dict[NetworkName, PlacementResult] = {}
    for name, (model, image) in models.items():
        if name in fixed:
            found[name] = time_placement(model, image, target, fixed[name], work)
        else:
            found[name] = find_placement(model, image, target, quantize.float_modules, quantize.search_seconds, work)
        progress.log(f"place: {name}: {describe(found[name])}")
    return found


def describe(placed: PlacementResult) -> str:
    """What was decided, in a sentence."""
    best, floating = placed.fastest_int8, placed.fastest_float
    if best is None or floating is None:
        return "the usual placement, not timed"
    if placed.float_wins:
        return (
            f"{floating.precision} is the fastest: the best integer form ({best.label}) is "
            f"{best.speedup / floating.speedup:.2f}x as fast"
        )
    return f"{best.label}: {best.speedup:.2f}x as fast as f32 ({len(placed.timed_placements)} candidates timed)"


def _check_names(model: nn.Module, names: Sequence[str]) -> None:
    known = [name for name, _ in model.named_modules() if name]
    for name in names:
        if name not in known:
            raise ToolchainError(f"[quantize] float_modules names {name!r}; {registry.suggest(name, known)}")


def _measurable(target: Target) -> Target | None:
    """The target itself where this machine, or the board, has its instructions, else the one to borrow from, else none."""
    kind = machine.integer_isa(target.device)
    if kind == target.isa:
        return target
    other = toml_files.read_target(target.fit_like) if target.fit_like else None
    if other is None or kind != other.isa or other.runtime != target.runtime:
        return None
    return replace(other, device=target.device)


def find_placement(
    model: nn.Module, image: Tensor, target: Target, float_modules: Sequence[str], seconds: float, work: Path
) -> PlacementResult:
    """Finds the fastest placement; the same structure on the same machine is not searched again.

    Args:
        model: trained or not; only its structure counts.
        image: one example input, float32 [1, 3, height, width].
        float_modules: what stays in float in any case.
        seconds: longest time to search; 0 takes the usual placement untimed.

    Raises:
        ToolchainError: the model cannot be exported, or the runtime takes none of the candidates.
    """
    forced, wanted = tuple(float_modules), target
    measurable = _measurable(wanted)
    if seconds == 0 or "int8" not in wanted.precisions or measurable is None:
        return PlacementResult(Placement(float_modules=forced), "", (), 0.0)
    target = measurable
    key = _key(model, image, target, forced, seconds)
    with stage_cache.open_stage(work, "place", key) as stage:
        if stage.record is None:
            started = time.monotonic()
            search = _started(model, image, target, stage.folder, started + seconds)
            chosen = search.find_fastest(forced)
            stage = stage_cache.finish(stage, started, search.to_record(chosen))
            _clear(stage.folder)
        return _placed(stage, key, target if target is not wanted else None)


def _placed(stage: stage_cache.CachedStage, key: str, lender: Target | None) -> PlacementResult:
    """What a finished stage found; `lender` is the target that it was measured for, where not the own one."""
    assert stage.record is not None
    tried = tuple(
        TimedPlacement(**{**row, "placement": read_placement(row["placement"])}) for row in stage.record["tried"]
    )
    borrowed = lender.name if lender else ""
    return PlacementResult(
        read_placement(stage.record["placement"]), key, tried, stage.seconds, stage.record["best"], borrowed
    )


def time_placement(model: nn.Module, image: Tensor, target: Target, chosen: Placement, work: Path) -> PlacementResult:
    """A placement that was decided elsewhere, timed beside the float forms; not timed where this machine cannot.

    Raises:
        ToolchainError: the model cannot be exported, or the runtime does not take the placement.
    """
    measurable = _measurable(target)
    if measurable is None:
        return PlacementResult(chosen, "", (), 0.0)
    key = _key(model, image, measurable, "replayed", chosen)
    with stage_cache.open_stage(work, "place", key) as stage:
        if stage.record is None:
            started = time.monotonic()
            search = _started(model, image, measurable, stage.folder, math.inf)
            search.time_placement(chosen)
            stage = stage_cache.finish(stage, started, search.to_record(chosen))
            _clear(stage.folder)
        return _placed(stage, key, measurable if measurable is not target else None)


def measure_speedup(model: nn.Module, image: Tensor, target: Target, chosen: Placement, work: Path) -> float | None:
    """How many times as fast as f32 one placement is: 0 where the runtime does not take it, None where this machine cannot measure."""
    placed = time_placement(model, image, target, chosen, work)
    if not placed.timed_placements:
        return None
    return placed.fastest_int8.speedup if placed.fastest_int8 else 0.0


def _key(model: nn.Module, image: Tensor, target: Target, *asked: object) -> str:
    """Of the model's structure and all that decides its latency; not of its weights."""
    board = (machine.describe(target.device),) if target.device else ()  # what is timed here is this machine's alone
    shapes = [(name, list(tensor.shape)) for name, tensor in model.state_dict().items()]
    return files.digest(
        VERSION, str(model), shapes, list(image.shape), target.runtime, target.threads, target.scheme, target.precisions,
        machine.runtime_version(target), machine.isa(target.device), (*asked, *board),
    )  # fmt: skip


def _started(model: nn.Module, image: Tensor, target: Target, folder: Path, deadline: float) -> PlacementSearch:
    graph, _ = pt2e.prepare(model, image, None, target.scheme)
    return PlacementSearch(to_onnx.export_graph(graph, image), target, tuple(image.shape), folder, deadline)


def read_placement(row: Mapping[str, Any]) -> Placement:
    """A placement from its JSON."""
    return Placement(
        float_modules=tuple(row["float_modules"]),
        float_operations=tuple(row["float_operations"]),
        results=row["results"],
    )


def _clear(folder: Path) -> None:
    for leftover in folder.glob("candidate*"):
        _remove(leftover)


def _remove(path: Path) -> None:
    for inner in path.iterdir() if path.is_dir() else ():
        inner.unlink()
    path.rmdir() if path.is_dir() else path.unlink()
