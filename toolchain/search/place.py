"""Choose the Q/DQ placement of each network by latency, measured in the target's own runtime before anything is trained.

The placement is data. The same structure on the same machine is not searched again.
"""

import math
import shutil
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import onnx_ir
from torch import Tensor, nn

from toolchain.config import read_config
from toolchain.config.job import Job
from toolchain.config.target import Target
from toolchain.core import files, progress, registry, stage_cache
from toolchain.core.errors import ToolchainError
from toolchain.core.types import NetworkName
from toolchain.export import to_onnx
from toolchain.export.onnx_model import OnnxModule
from toolchain.measure import machine
from toolchain.models.sources import user_code
from toolchain.quantization import pt2e
from toolchain.quantization.placement import Placement
from toolchain.quantization.placement_result import PlacementResult, TimedPlacement
from toolchain.search.placement_search import PlacementSearch

VERSION = 7


def run(
    job: Job, networks: Mapping[NetworkName, tuple[nn.Module, Tensor]], decided: Mapping[NetworkName, Placement],
) -> dict[NetworkName, PlacementResult]:  # fmt: skip
    """Return the placement of each network, searched for where it is not decided yet.

    Args:
        job: target, and the recipe's [quantize] settings.
        networks: each with an example input, float32 [1, 3, height, width].
        decided: placements that are only timed.

    Raises:
        ToolchainError: as for `find_placement`, or `float_modules` names something that is not a module of the model.
    """
    target, work, quantize = job.target, job.work, job.recipe.quantize
    _check_float_modules(networks["dense"][0], quantize.float_modules)
    results: dict[NetworkName, PlacementResult] = {}
    for name, (model, image) in networks.items():
        if name in decided:
            results[name] = time_placement(model, image, target, decided[name], work)
        else:
            results[name] = find_placement(model, image, target, quantize.float_modules, quantize.search_seconds, work)
        progress.log(f"place: {name}: {describe(results[name])}")
    return results


def describe(placed: PlacementResult) -> str:
    """Return the chosen placement and its speed-up in one sentence."""
    int8, floating = placed.fastest_int8, placed.fastest_float
    if int8 is None or floating is None:
        return "the default placement, not timed"
    if placed.float_wins:
        ratio = int8.speedup / floating.speedup
        return f"{floating.precision} is fastest; the best int8 placement ({int8.label}) is {ratio:.2f}x as fast"
    return f"{int8.label}: {int8.speedup:.2f}x as fast as f32 ({len(placed.timed_placements)} candidates timed)"


def find_placement(
    model: nn.Module, image: Tensor, target: Target, float_modules: Sequence[str], seconds: float, work: Path
) -> PlacementResult:
    """Search for the fastest placement, or read the result of an earlier search.

    Args:
        model: trained or not; only its structure matters.
        image: one example input, float32 [1, 3, height, width].
        target: gives runtime, threads, scheme, precisions and board.
        float_modules: modules that stay in float.
        seconds: longest time to search; 0 gives the default placement, not timed.
        work: the stage cache.

    Raises:
        ToolchainError: the model cannot be exported, or the runtime rejects every candidate.
    """
    forced = tuple(float_modules)
    timed_target = _find_timed_target(target)
    if seconds == 0 or "int8" not in target.precisions or timed_target is None:
        return PlacementResult(Placement(float_modules=forced), "", (), 0.0)
    key = _compute_key(model, image, timed_target, forced, seconds)
    with stage_cache.open_stage(work, "place", key) as stage:
        if stage.record is None:
            started = time.monotonic()
            search = prepare_search(model, image, timed_target, stage.folder, started + seconds)
            placement = search.find_fastest(forced)
            stage = stage_cache.finish(stage, started, search.to_record(placement))
            _remove_candidates(stage.folder)
        return _read_result(stage, key, timed_target, target)


def time_placement(
    model: nn.Module, image: Tensor, target: Target, placement: Placement, work: Path
) -> PlacementResult:
    """Time one placement beside the float forms; return it without timings where this machine cannot run it.

    Args:
        model: trained or not; only its structure matters.
        image: one example input, float32 [1, 3, height, width].
        target: gives runtime, threads, scheme, precisions and board.
        placement: the placement to time.
        work: the stage cache.

    Raises:
        ToolchainError: the model cannot be exported, or the runtime rejects the placement.
    """
    timed_target = _find_timed_target(target)
    if timed_target is None:
        return PlacementResult(placement, "", (), 0.0)
    key = _compute_key(model, image, timed_target, "replayed", placement)
    with stage_cache.open_stage(work, "place", key) as stage:
        if stage.record is None:
            started = time.monotonic()
            search = prepare_search(model, image, timed_target, stage.folder, math.inf)
            search.time_placement(placement)
            stage = stage_cache.finish(stage, started, search.to_record(placement))
            _remove_candidates(stage.folder)
        return _read_result(stage, key, timed_target, target)


def measure_speedup(model: nn.Module, image: Tensor, target: Target, placement: Placement, work: Path) -> float | None:
    """Return the speed-up of one placement over float32; 0 if the runtime rejects it, None if it cannot be timed here.

    Args: as for `time_placement`.
    """
    placed = time_placement(model, image, target, placement, work)
    if not placed.timed_placements:
        return None
    return placed.fastest_int8.speedup if placed.fastest_int8 else 0.0


def prepare_search(model: nn.Module, image: Tensor, target: Target, folder: Path, deadline: float) -> PlacementSearch:
    """Export the float graph of a model and return a search on it.

    Args:
        model: trained or not; only its structure matters.
        image: one example input, float32 [1, 3, height, width].
        target: gives runtime, threads, scheme, precisions and board.
        folder: for compiled candidates and for what was timed.
        deadline: end of the search, in seconds of `time.monotonic`.

    Raises:
        ToolchainError: the model cannot be exported.
    """
    return PlacementSearch(_trace_float_graph(model, image, target), target, tuple(image.shape), folder, deadline)


def _trace_float_graph(model: nn.Module, image: Tensor, target: Target) -> onnx_ir.Model:
    if isinstance(model, OnnxModule):
        return model.graph
    graph, _ = pt2e.prepare(model, image, None, target.scheme)
    return to_onnx.export_graph(graph, image)


def read_placement(row: Mapping[str, Any]) -> Placement:
    """Return a placement from its JSON."""
    return Placement(
        float_modules=tuple(row["float_modules"]),
        float_operations=tuple(row["float_operations"]),
        results=row["results"],
    )


def _check_float_modules(model: nn.Module, float_modules: Sequence[str]) -> None:
    known = (
        list(model.module_names)
        if isinstance(model, OnnxModule)
        else [name for name, _ in model.named_modules() if name]
    )
    for name in float_modules:
        if name not in known:
            raise ToolchainError(f"[quantize] float_modules names {name!r}; {registry.suggest(name, known)}")


def _find_timed_target(target: Target) -> Target | None:
    """Return the target to time for: the job's own, or its `fit_like` where only that one's instructions are here.

    None where this machine, or the board, has neither's.
    """
    isa = machine.integer_isa(target.device)
    if isa == target.isa:
        return target
    similar = read_config.read_target(target.fit_like) if target.fit_like else None
    if similar is None or isa != similar.isa or similar.runtime != target.runtime:
        return None
    return replace(similar, device=target.device)


def _compute_key(model: nn.Module, image: Tensor, target: Target, *settings: object) -> str:
    """Return the cache key over the model's structure and all that decides its latency, without its weights."""
    # without a board, timings stay in this machine's own cache, so the machine needs no place in the key
    board = (machine.describe(target.device),) if target.device else ()
    shapes = [(name, list(tensor.shape)) for name, tensor in model.state_dict().items()]
    if code := user_code.hash_sources(model):  # what `forward` does does not show in the model's text
        settings = (*settings, code)
    return files.digest(
        VERSION, str(model), shapes, list(image.shape), target.runtime, target.threads, target.scheme, target.precisions,
        machine.runtime_version(target), machine.vector_extensions(target.device), (*settings, *board),
    )  # fmt: skip


def _read_result(stage: stage_cache.CachedStage, key: str, timed_target: Target, job_target: Target) -> PlacementResult:
    """Return the result of a finished stage."""
    assert stage.record is not None
    timed_placements = tuple(
        TimedPlacement(**{**row, "placement": read_placement(row["placement"])}) for row in stage.record["tried"]
    )
    return PlacementResult(
        placement=read_placement(stage.record["placement"]), key=key, timed_placements=timed_placements,
        search_seconds=stage.seconds, chosen_label=stage.record["best"],
        measured_for="" if timed_target is job_target else timed_target.name,
    )  # fmt: skip


def _remove_candidates(folder: Path) -> None:
    for candidate in folder.glob("candidate*"):
        shutil.rmtree(candidate) if candidate.is_dir() else candidate.unlink()
