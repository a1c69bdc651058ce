"""bench: artefacts, target -> latency from paired rounds, footprint, and the share of what this core can do."""

import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import psutil

from toolchain import conditions, machine, peak, records, series, stats, timing
from toolchain.values import Measurement, Precision, Target, Variant

VERSION = 5
ROUNDS = 10


def run(variants: Sequence[Variant], target: Target, seed: int, work: Path) -> tuple[dict[str, Measurement], list[str]]:
    """Times all variants against one another.

    Args:
        variants: what to time; the same runtime and threads for all.

    Returns:
        a Measurement by variant name, none where this machine lacks the target's instructions; and warnings in plain
        words.
    """
    kind = machine.kind(target.device)
    if kind != target.isa:
        return {}, [
            f"latency was not measured: {target.device or 'this machine'} is {kind}, {target.name} is {target.isa}; "
            "accuracy was measured with this machine's kernels"
        ]
    sides = [_side(v.name, v.artefact.path, v.precision, target, (1, 3, *v.image_size)) for v in variants]
    hashes = [(v.name, v.artefact.sha256, v.precision) for v in variants]
    shapes = [side.shape for side in sides]
    key = records.digest(
        VERSION, hashes, target.threads, machine.runtime(target), machine.describe(target.device), shapes, ROUNDS
    )
    with records.stage(work, "bench", key) as stage:
        if stage.figures is None:
            started = time.monotonic()
            load = 0.0 if target.device else _foreign_load()
            measured = series.run(sides, ROUNDS, seed, stage.folder / "rounds.json", "bench: paired rounds")
            peaks = peak.reached(
                target.runtime, target.threads, seed, stage.folder, {v.precision for v in variants}, target.device
            )
            prints = {side.name: records.plain(timing.footprint(side)) for side in sides}
            stage = records.finish(stage, started, {"footprints": prints, "peaks": peaks, "load": load})
        else:
            measured = series.read(stage.folder / "rounds.json")
        assert stage.figures is not None
        figures = stage.figures
    result = {v.name: _measurement(v, variants, measured, figures) for v in variants}
    return result, _warnings(result, figures["load"])


def _side(name: str, path: Path, precision: Precision, target: Target, shape: tuple[int, ...]) -> timing.Side:
    return timing.Side(
        name=name, runtime=target.runtime, path=str(path), precision=precision, threads=target.threads, shape=shape,
        device=target.device,
    )  # fmt: skip


def _measurement(
    variant: Variant, variants: Sequence[Variant], measured: Sequence[timing.Round], figures: Mapping[str, object]
) -> Measurement:
    half = series.p50(measured, variant.name)
    footprints, peaks = figures["footprints"], figures["peaks"]
    assert isinstance(footprints, Mapping)
    assert isinstance(peaks, Mapping)
    most = peaks.get(variant.precision)
    return Measurement(
        latencies_ms=tuple(series.samples(measured, variant.name)),
        p50_ms=half,
        round_logs={
            other.name: series.logs(measured, other.name, variant.name)
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


def _warnings(result: Mapping[str, Measurement], load: float) -> list[str]:
    found = []
    if load > conditions.BUSY:
        found.append(f"other work kept {load:.1f} cores busy when timing began; ratios hold, milliseconds are too high")
    noisy = max((stats.spread(logs) for m in result.values() for logs in m.round_logs.values()), default=0.0)
    if noisy > conditions.NOISE:
        found.append(f"rounds differ by {noisy:.0%} (standard deviation); this machine is noisy, trust the intervals")
    return found
