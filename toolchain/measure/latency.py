"""bench: artefacts, target -> latency from paired rounds, footprint, and the share of what this core can do."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil

from toolchain.config.job import Job
from toolchain.config.target import Target
from toolchain.core import files, stage_cache, statistics
from toolchain.core.types import Interval, Precision
from toolchain.export.export_variants import Variant
from toolchain.measure import machine, paired_rounds, paired_timing, peak_throughput, timing_conditions


@dataclass(frozen=True, kw_only=True)
class LatencyMeasurement:
    """A variant's latency from paired rounds, and its footprint from a process of its own."""

    latencies_ms: tuple[float, ...]  # every sample of every round
    p50_ms: Interval
    round_logs: Mapping[str, Sequence[float]]  # against each other variant: log of how many times faster, by round
    load_ms: float
    first_ms: float
    peak_rss_bytes: int
    peak_share: float | None  # of the multiply-accumulates a second that a large convolution reaches in the same rounds


VERSION = 5
ROUNDS = 10


def run(job: Job, variants: Sequence[Variant]) -> tuple[dict[str, LatencyMeasurement], list[str]]:
    """Times all variants against one another.

    Args:
        variants: what to time; the same runtime and threads for all.

    Returns:
        a Measurement by variant name, none where this machine lacks the target's instructions; and warnings in plain
        words.
    """
    target, seed = job.target, job.recipe.seed
    kind = machine.integer_isa(target.device)
    if kind != target.isa:
        return {}, [
            f"latency was not measured: {target.device or 'this machine'} is {kind}, {target.name} is {target.isa}; "
            "accuracy was measured with this machine's kernels"
        ]
    sides = [_side(v.name, v.artefact.path, v.precision, target, (1, 3, *v.image_size)) for v in variants]
    hashes = [(v.name, v.artefact.sha256, v.precision) for v in variants]
    shapes = [side.shape for side in sides]
    key = files.digest(
        VERSION,
        hashes,
        target.threads,
        machine.runtime_version(target),
        machine.describe(target.device),
        shapes,
        ROUNDS,
    )
    with stage_cache.open_stage(job.work, "bench", key) as stage:
        if stage.record is None:
            started = time.monotonic()
            load = 0.0 if target.device else _foreign_load()
            measured = paired_rounds.measure(sides, ROUNDS, seed, stage.folder / "rounds.json", "bench: paired rounds")
            peaks = peak_throughput.measure(
                target.runtime, target.threads, seed, stage.folder, {v.precision for v in variants}, target.device
            )
            prints = {side.name: files.to_jsonable(paired_timing.measure_footprint(side)) for side in sides}
            stage = stage_cache.finish(stage, started, {"footprints": prints, "peaks": peaks, "load": load})
        else:
            measured = paired_rounds.read(stage.folder / "rounds.json")
        assert stage.record is not None
        figures = stage.record
    result = {v.name: _measurement(v, variants, measured, figures) for v in variants}
    return result, _warnings(result, figures["load"])


def _side(
    name: str, path: Path, precision: Precision, target: Target, shape: tuple[int, ...]
) -> paired_timing.TimedModel:
    return paired_timing.TimedModel(
        name=name, runtime=target.runtime, path=str(path), precision=precision, threads=target.threads, shape=shape,
        device=target.device,
    )  # fmt: skip


def _measurement(
    variant: Variant,
    variants: Sequence[Variant],
    measured: Sequence[paired_timing.Round],
    figures: Mapping[str, object],
) -> LatencyMeasurement:
    half = paired_rounds.p50(measured, variant.name)
    footprints, peaks = figures["footprints"], figures["peaks"]
    assert isinstance(footprints, Mapping)
    assert isinstance(peaks, Mapping)
    most = peaks.get(variant.precision)
    return LatencyMeasurement(
        latencies_ms=tuple(paired_rounds.samples(measured, variant.name)),
        p50_ms=half,
        round_logs={
            other.name: paired_rounds.log_speedups(measured, other.name, variant.name)
            for other in variants
            if other.name != variant.name
        },
        load_ms=footprints[variant.name]["load_ms"],
        first_ms=footprints[variant.name]["first_ms"],
        peak_rss_bytes=int(footprints[variant.name]["peak_rss_bytes"]),
        peak_share=variant.macs / (half.estimate * 1e-3) / most if most else None,
    )


def _foreign_load() -> float:
    """Cores that others keep busy while this process rests."""
    return float(psutil.cpu_percent(interval=0.5)) / 100 * (psutil.cpu_count() or 1)


def _warnings(result: Mapping[str, LatencyMeasurement], load: float) -> list[str]:
    found = []
    if load > timing_conditions.MAX_FOREIGN_CORES:
        found.append(f"other work kept {load:.1f} cores busy when timing began; ratios hold, milliseconds are too high")
    noisy = max((statistics.timing_noise(logs) for m in result.values() for logs in m.round_logs.values()), default=0.0)
    if noisy > timing_conditions.MAX_ROUND_DEVIATION:
        found.append(f"rounds differ by {noisy:.0%} (standard deviation); this machine is noisy, trust the intervals")
    return found
