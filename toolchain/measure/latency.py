"""The bench step of an export: latency of every variant in paired rounds, its footprint and its share of the peak throughput.

All variants are timed in the same processes, so their ratios hold even where milliseconds are disturbed by other load.
"""

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
from toolchain.measure.paired_timing import Round, TimedModel


@dataclass(frozen=True, kw_only=True)
class LatencyMeasurement:
    """A variant's latency from paired rounds, and its footprint from a process of its own."""

    latencies_ms: tuple[float, ...]  # every sample of every round
    p50_ms: Interval
    round_logs: Mapping[str, Sequence[float]]  # by the other variant: log of the speed-up over it, by round
    load_ms: float
    first_ms: float
    peak_rss_bytes: int
    peak_share: float | None  # of the multiply-accumulates per second that a large convolution reaches in its rounds


VERSION = 5
ROUNDS = 10


def run(job: Job, variants: Sequence[Variant]) -> tuple[dict[str, LatencyMeasurement], list[str]]:
    """Time all variants against one another on the target.

    Args:
        job: its target gives runtime, threads and board, its recipe the seed.
        variants: what to time; the same runtime and threads for all.

    Returns:
        The measurement by variant name, none where the machine lacks the target's instructions; and warnings.
    """
    target, seed = job.target, job.recipe.seed
    isa = machine.integer_isa(target.device)
    if isa != target.isa:
        return {}, [
            f"latency was not measured: {target.name} needs {target.isa}, and {target.device or 'this machine'} is {isa}; "
            "accuracy was measured with this machine's kernels"
        ]
    models = [_make_timed_model(v.name, v.artefact.path, v.precision, target, (1, 3, *v.image_size)) for v in variants]
    hashes = [(v.name, v.artefact.sha256, v.precision) for v in variants]
    shapes = [model.shape for model in models]
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
            load = 0.0 if target.device else _measure_foreign_load()
            rounds = paired_rounds.measure(models, ROUNDS, seed, stage.folder / "rounds.json", "bench: paired rounds")
            peaks = peak_throughput.measure(
                target.runtime, target.threads, seed, stage.folder, {v.precision for v in variants}, target.device
            )
            footprints = {model.name: files.to_jsonable(paired_timing.measure_footprint(model)) for model in models}
            stage = stage_cache.finish(stage, started, {"footprints": footprints, "peaks": peaks, "load": load})
        else:
            rounds = paired_rounds.read(stage.folder / "rounds.json")
        assert stage.record is not None
        record = stage.record
    measurements = {v.name: _summarize(v, variants, rounds, record) for v in variants}
    return measurements, _list_warnings(measurements, record["load"])


def _make_timed_model(
    name: str, path: Path, precision: Precision, target: Target, shape: tuple[int, ...]
) -> TimedModel:
    return TimedModel(
        name=name, runtime=target.runtime, path=str(path), precision=precision, threads=target.threads, shape=shape,
        device=target.device,
    )  # fmt: skip


def _summarize(
    variant: Variant, variants: Sequence[Variant], rounds: Sequence[Round], record: Mapping[str, object]
) -> LatencyMeasurement:
    """Summarize a variant's rounds.

    Args:
        variant: to summarize.
        variants: all that were timed with it.
        rounds: of all variants.
        record: of the stage: footprints by variant, peak multiply-accumulates per second by precision.
    """
    p50 = paired_rounds.p50(rounds, variant.name)
    footprints, peaks = record["footprints"], record["peaks"]
    assert isinstance(footprints, Mapping)
    assert isinstance(peaks, Mapping)
    peak = peaks.get(variant.precision)
    return LatencyMeasurement(
        latencies_ms=tuple(paired_rounds.samples(rounds, variant.name)),
        p50_ms=p50,
        round_logs={
            other.name: paired_rounds.log_speedups(rounds, other.name, variant.name)
            for other in variants
            if other.name != variant.name
        },
        load_ms=footprints[variant.name]["load_ms"],
        first_ms=footprints[variant.name]["first_ms"],
        peak_rss_bytes=int(footprints[variant.name]["peak_rss_bytes"]),
        peak_share=variant.macs / (p50.estimate * 1e-3) / peak if peak else None,
    )


def _measure_foreign_load() -> float:
    """Return how many cores other processes keep busy, measured while this one sleeps."""
    return float(psutil.cpu_percent(interval=0.5)) / 100 * (psutil.cpu_count() or 1)


def _list_warnings(measurements: Mapping[str, LatencyMeasurement], load: float) -> list[str]:
    warnings = []
    if load > timing_conditions.MAX_FOREIGN_CORES:
        warnings.append(
            f"other processes kept {load:.1f} cores busy when timing began; ratios are valid, milliseconds are too high"
        )
    deviation = max(
        (statistics.timing_noise(logs) for latency in measurements.values() for logs in latency.round_logs.values()),
        default=0.0,
    )
    if deviation > timing_conditions.MAX_ROUND_DEVIATION:
        warnings.append(
            f"the speed-ups of the rounds have a standard deviation of {deviation:.0%}: this machine is noisy; rely on the "
            "intervals, not on single values"
        )
    return warnings
