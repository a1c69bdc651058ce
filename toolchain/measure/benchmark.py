"""Benchmark bundles and bare model files: latency, footprint, share of the peak throughput, and what may have disturbed them.

All models are timed in the same processes, so their ratios hold on a machine that is busy. Each is also loaded alone,
several times, for its memory, load time and first inference. Other batch sizes and numbers of threads have rounds of their
own.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from toolchain.core import files, statistics
from toolchain.core.errors import ToolchainError
from toolchain.core.types import Interval
from toolchain.measure import machine, paired_rounds, paired_timing, peak_throughput, timing_conditions
from toolchain.measure.model_files import ModelFile
from toolchain.measure.paired_timing import Footprint, Round, TimedModel

SCHEMA = 1
FOOTPRINT_PROCESSES = 3  # processes that load one model alone
ROUNDS_PER_SETTING = 3  # of each further batch size and number of threads
BOOTSTRAP_DRAWS = 1000  # of whole rounds, for the interval of a percentile
PERCENTILES = (50, 90, 99)


@dataclass(frozen=True, kw_only=True)
class BenchmarkSettings:
    """How to measure."""

    rounds: int = 10
    seed: int = 0
    batch_sizes: tuple[int, ...] = ()  # to time besides batch size 1
    thread_counts: tuple[int, ...] = ()  # to time besides each model's own
    cores: tuple[int, ...] = ()  # to pin this process to; empty: the operating system chooses


def compare_models(model_files: Sequence[ModelFile], settings: BenchmarkSettings, folder: Path) -> dict[str, Any]:
    """Time models against one another, and return the report as plain data.

    Args:
        model_files: their names must differ; all on the same board or on this machine.
        settings: rounds, batch sizes, threads and cores.
        folder: raw rounds are written there as they are measured.

    Raises:
        ToolchainError: a model does not load, or no input can be made for it.
    """
    models = [_fix_batch(model_file, folder).timed_model for model_file in model_files]
    names, device = [model.name for model in models], models[0].device
    with timing_conditions.pin_to_cores(settings.cores) as not_pinned:
        monitor = timing_conditions.ConditionMonitor()
        rounds = paired_rounds.measure(
            models, settings.rounds, settings.seed, folder / "rounds.json", "bench: paired rounds"
        )
        footprints = {
            model.name: [paired_timing.measure_footprint(model) for _ in range(FOOTPRINT_PROCESSES)] for model in models
        }
        disturbances = [] if device else monitor.conditions()  # its counters are this machine's, not the board's
        warnings = [*not_pinned, *disturbances, *timing_conditions.check_steadiness(rounds, names)]
        peaks = _measure_peaks(models, settings.seed, folder)
        throughputs = _measure_throughput(model_files, models, settings, folder)
    return {
        "schema": SCHEMA,
        "measured_at": files.utc_now(),
        "device": device,
        "machine": dict(machine.describe(device)),
        "versions": {model.runtime: dict(paired_timing.versions(model)) for model in models},
        "warnings": files.to_jsonable(warnings),
        "subjects": [
            {
                **_describe(model_file, model),
                **_summarize(model_file.macs, model, rounds, footprints[model.name], peaks),
                "throughput": [row for row in throughputs if row["name"] == model.name],
                **_name_recipe(model_file),
            }
            for model_file, model in zip(model_files, models, strict=True)
        ],
        "ratios": _list_ratios(rounds, names),
        "rounds": files.to_jsonable(rounds),
    }


def _fix_batch(model_file: ModelFile, folder: Path) -> ModelFile:
    """Return the model with batch size 1 where the file leaves it open: an open one is slower, and is never shipped."""
    return model_file.with_batch(1, folder) if model_file.dynamic_batch else model_file


def _describe(model_file: ModelFile, model: TimedModel) -> dict[str, Any]:
    return {
        "name": model.name,
        "runtime": model.runtime,
        "precision": model.precision,
        "threads": model.threads,
        "shape": list(model.shape),
        "sha256": model_file.artefact.sha256,
        "size_bytes": model_file.artefact.size_bytes,
    }


def _summarize(
    macs: int | None,
    model: TimedModel,
    rounds: Sequence[Round],
    footprints: Sequence[Footprint],
    peaks: Mapping[tuple[str, str, int], float],
) -> dict[str, Any]:
    """Summarize what was measured of a model.

    Args:
        macs: multiply-accumulates of one image; None: unknown.
        model: to summarize.
        rounds: of all models.
        footprints: of this model, one of each process.
        peaks: multiply-accumulates per second by runtime, precision and threads.
    """
    p50, peak = paired_rounds.p50(rounds, model.name), peaks.get((model.runtime, model.precision, model.threads))
    return {
        "macs": macs,
        "peak_share": macs / (p50.estimate * 1e-3) / peak if macs and peak else None,
        "latency_ms": {f"p{rank}": files.to_jsonable(percentile(rounds, model.name, rank)) for rank in PERCENTILES},
        "load_ms": _median([footprint.load_ms for footprint in footprints]),
        "first_ms": _median([footprint.first_ms for footprint in footprints]),
        "peak_rss_bytes": int(_median([footprint.peak_rss_bytes for footprint in footprints])),
    }


def _name_recipe(model_file: ModelFile) -> dict[str, Any]:
    """Return recipe and target of a bundle; nothing of a bare file."""
    manifest = model_file.manifest
    return {} if manifest is None else {"recipe": manifest["recipe"], "target": manifest["target"]}


def _median(values: Sequence[float]) -> float:
    return float(np.median(values))


def percentile(rounds: Sequence[Round], model: str, rank: int) -> Interval | None:
    """Return a percentile of a model's latency in milliseconds with its 95 % interval; None where the samples are too few.

    The inferences of one round are alike, so whole rounds are resampled (cluster bootstrap).

    Args:
        rounds: that the model was timed in.
        model: its name.
        rank: of the percentile, such as 90.
    """
    samples = paired_rounds.samples(rounds, model)
    estimate = statistics.percentile(samples, rank)
    if estimate is None or len(rounds) < 3:
        return None
    if rank == 50:
        return paired_rounds.p50(rounds, model)
    by_round = [np.array(timed.blocks[model]).ravel() for timed in rounds]
    random = np.random.default_rng(0)
    resampled = [
        np.percentile(np.concatenate([by_round[i] for i in random.integers(0, len(by_round), len(by_round))]), rank)
        for _ in range(BOOTSTRAP_DRAWS)
    ]
    low, high = np.percentile(resampled, [2.5, 97.5])
    return Interval(
        estimate=estimate, low=min(float(low), estimate), high=max(float(high), estimate), samples=len(samples)
    )


def _list_ratios(rounds: Sequence[Round], names: Sequence[str]) -> list[dict[str, Any]]:
    """Return the speed-up of each model over each other."""
    return [
        {
            "name": candidate,
            "than": baseline,
            **files.to_jsonable(statistics.speedup(paired_rounds.log_speedups(rounds, baseline, candidate))),
        }
        for baseline in names
        for candidate in names
        if baseline != candidate
    ]


def _measure_peaks(models: Sequence[TimedModel], seed: int, folder: Path) -> dict[tuple[str, str, int], float]:
    """Return the peak multiply-accumulates per second, by runtime, precision and threads."""
    peaks = dict[tuple[str, str, int], float]()
    for runtime, threads in sorted({(model.runtime, model.threads) for model in models}):
        precisions = {model.precision for model in models if (model.runtime, model.threads) == (runtime, threads)}
        measured = peak_throughput.measure(
            runtime, threads, seed, folder / f"peak-{runtime}-{threads}", precisions, models[0].device
        )
        peaks |= {(runtime, precision, threads): peak for precision, peak in measured.items()}
    return peaks


def _measure_throughput(
    model_files: Sequence[ModelFile], models: Sequence[TimedModel], settings: BenchmarkSettings, folder: Path
) -> list[dict[str, Any]]:
    """Return images per second for every further batch size and number of threads; a model that cannot says why."""
    rows = []
    swept = settings.batch_sizes or settings.thread_counts
    for batch_size in sorted({1, *settings.batch_sizes}) if swept else ():
        for threads in sorted(set(settings.thread_counts) or {0}):  # 0: each model's own number
            batched = list[TimedModel]()
            for model_file, model in zip(model_files, models, strict=True):
                try:
                    same = batch_size == model.shape[0]
                    resized = model if same else model_file.with_batch(batch_size, folder).timed_model
                except ToolchainError as reason:
                    rows.append(_explain_failure(model.name, batch_size, threads or model.threads, str(reason)))
                    continue
                batched.append(replace(resized, name=model.name, threads=threads or model.threads))
            if not batched:
                continue
            label = f"bench: batch {batch_size}" + (f", {threads} threads" if threads else "")
            path = folder / f"rounds-batch{batch_size}-threads{threads}.json"
            rounds = paired_rounds.measure(batched, ROUNDS_PER_SETTING, settings.seed, path, label)
            for model in batched:
                p50 = paired_rounds.p50(rounds, model.name)
                rows.append({
                    "name": model.name, "batch": batch_size, "threads": model.threads, "p50_ms": p50.estimate,
                    "images_per_second": 1e3 * batch_size / p50.estimate, "samples": p50.samples, "why": "",
                })  # fmt: skip
    return rows


def _explain_failure(name: str, batch_size: int, threads: int, why: str) -> dict[str, Any]:
    """Return the row of a model that was not timed with a batch size."""
    return {
        "name": name, "batch": batch_size, "threads": threads, "p50_ms": None, "images_per_second": None, "samples": 0,
        "why": why,
    }  # fmt: skip
