"""bench: bundles and bare model files, timed against one another, with everything a latency figure should come with.

All subjects share every process, so their ratios hold on a machine that is busy; each is also loaded alone, several
times, for its memory, load time and first inference. Other batch sizes and numbers of threads have rounds of their own.
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
from toolchain.measure.paired_timing import Round, TimedModel

SCHEMA = 1
FOOTPRINT_PROCESSES = 3  # processes that load one subject alone
ROUNDS_PER_SETTING = 3  # of each further batch size and number of threads
BOOTSTRAP_DRAWS = 1000  # of whole rounds, for the interval of a percentile
PERCENTILES = (50, 90, 99)


@dataclass(frozen=True, kw_only=True)
class BenchmarkSettings:
    """How to measure."""

    rounds: int = 10
    seed: int = 0
    batch_sizes: tuple[int, ...] = ()  # further ones
    thread_counts: tuple[int, ...] = ()  # further numbers of them
    cores: tuple[int, ...] = ()  # cores to stay on; none: wherever the system puts it


def compare_models(subjects: Sequence[ModelFile], asked: BenchmarkSettings, folder: Path) -> dict[str, Any]:
    """Measures, and gives the report as plain data; raw rounds are written to `folder` as they come.

    Raises:
        ToolchainError: a subject does not load, or an input cannot be made for it.
    """
    sides = [_static(one, folder).timed_model for one in subjects]
    names = [side.name for side in sides]
    with timing_conditions.pin_to_cores(asked.cores) as refused:
        watch = timing_conditions.ConditionMonitor()
        measured = paired_rounds.measure(
            sides, asked.rounds, asked.seed, folder / "rounds.json", "bench: paired rounds"
        )
        alone = {
            side.name: [paired_timing.measure_footprint(side) for _ in range(FOOTPRINT_PROCESSES)] for side in sides
        }
        seen = [] if sides[0].device else watch.conditions()  # counters are this machine's
        found = [*refused, *seen, *timing_conditions.check_steadiness(measured, names)]
        peaks = _peaks(sides, asked.seed, folder)
        swept = _swept(subjects, sides, asked, folder)
    return {
        "schema": SCHEMA,
        "measured_at": files.utc_now(),
        "device": sides[0].device,
        "machine": dict(machine.describe(sides[0].device)),
        "versions": {side.runtime: dict(paired_timing.versions(side)) for side in sides},
        "warnings": files.to_jsonable(found),
        "subjects": [
            _row(one, side, measured, alone[side.name], peaks, [row for row in swept if row["name"] == side.name])
            for one, side in zip(subjects, sides, strict=True)
        ],
        "ratios": _ratios(measured, names),
        "rounds": files.to_jsonable(measured),
    }


def _static(subject: ModelFile, folder: Path) -> ModelFile:
    """With one picture where a bare file leaves their number open: that is slower, and nothing ships like that."""
    return subject.with_batch(1, folder) if subject.dynamic_batch else subject


def _row(
    subject: ModelFile, side: TimedModel, measured: Sequence[Round], alone: Sequence[paired_timing.Footprint],
    peaks: Mapping[tuple[str, str, int], float], swept: Sequence[Mapping[str, Any]],
) -> dict[str, Any]:  # fmt: skip
    p50, most = paired_rounds.p50(measured, side.name), peaks.get((side.runtime, side.precision, side.threads))
    macs = subject.macs
    return {
        "name": side.name,
        "runtime": side.runtime,
        "precision": side.precision,
        "threads": side.threads,
        "shape": list(side.shape),
        "sha256": subject.artefact.sha256,
        "size_bytes": subject.artefact.size_bytes,
        "macs": macs,
        "peak_share": macs / (p50.estimate * 1e-3) / most if macs and most else None,
        "latency_ms": {f"p{which}": files.to_jsonable(percentile(measured, side.name, which)) for which in PERCENTILES},
        "load_ms": _middle([one.load_ms for one in alone]),
        "first_ms": _middle([one.first_ms for one in alone]),
        "peak_rss_bytes": int(_middle([one.peak_rss_bytes for one in alone])),
        "throughput": list(swept),
        **(
            {}
            if subject.manifest is None
            else {"recipe": subject.manifest["recipe"], "target": subject.manifest["target"]}
        ),
    }


def _middle(values: Sequence[float]) -> float:
    return float(np.median(values))


def percentile(measured: Sequence[Round], side: str, which: int) -> Interval | None:
    """A percentile of all inferences, None where they are too few; its interval from rounds drawn anew.

    Inferences of one round are alike, so whole rounds are drawn (cluster bootstrap).
    """
    samples = paired_rounds.samples(measured, side)
    middle = statistics.percentile(samples, which)
    if middle is None or len(measured) < 3:
        return None
    if which == 50:
        return paired_rounds.p50(measured, side)
    own = [np.array(one.blocks[side]).ravel() for one in measured]
    random = np.random.default_rng(0)
    drawn = [
        np.percentile(np.concatenate([own[i] for i in random.integers(0, len(own), len(own))]), which)
        for _ in range(BOOTSTRAP_DRAWS)
    ]
    low, high = np.percentile(drawn, [2.5, 97.5])
    return Interval(estimate=middle, low=min(float(low), middle), high=max(float(high), middle), samples=len(samples))


def _ratios(measured: Sequence[Round], names: Sequence[str]) -> list[dict[str, Any]]:
    """How many times faster each is than each other."""
    return [
        {
            "name": other,
            "than": base,
            **files.to_jsonable(statistics.speedup(paired_rounds.log_speedups(measured, base, other))),
        }
        for base in names
        for other in names
        if base != other
    ]


def _peaks(sides: Sequence[TimedModel], seed: int, folder: Path) -> dict[tuple[str, str, int], float]:
    """What the core reaches, by runtime, precision and threads."""
    found = dict[tuple[str, str, int], float]()
    for runtime, threads in sorted({(side.runtime, side.threads) for side in sides}):
        asked = {side.precision for side in sides if (side.runtime, side.threads) == (runtime, threads)}
        reached = peak_throughput.measure(
            runtime, threads, seed, folder / f"peak-{runtime}-{threads}", asked, sides[0].device
        )
        found |= {(runtime, precision, threads): value for precision, value in reached.items()}
    return found


def _swept(
    subjects: Sequence[ModelFile], sides: Sequence[TimedModel], asked: BenchmarkSettings, folder: Path
) -> list[dict[str, Any]]:
    """Pictures a second for every batch size and number of threads that was asked for."""
    rows = []
    for batch in sorted({1, *asked.batch_sizes}) if asked.batch_sizes or asked.thread_counts else ():
        for threads in sorted(set(asked.thread_counts) or {0}):
            own = list[TimedModel]()
            for subject, side in zip(subjects, sides, strict=True):
                try:
                    other = side if batch == side.shape[0] else subject.with_batch(batch, folder).timed_model
                except ToolchainError as reason:
                    rows.append(_unswept(side.name, batch, threads or side.threads, str(reason)))
                    continue
                own.append(replace(other, name=side.name, threads=threads or side.threads))
            if not own:
                continue
            label = f"bench: batch {batch}" + (f", {threads} threads" if threads else "")
            path = folder / f"rounds-batch{batch}-threads{threads}.json"
            measured = paired_rounds.measure(own, ROUNDS_PER_SETTING, asked.seed, path, label)
            for side in own:
                p50 = paired_rounds.p50(measured, side.name)
                rows.append({
                    "name": side.name, "batch": batch, "threads": side.threads, "p50_ms": p50.estimate,
                    "images_per_second": 1e3 * batch / p50.estimate, "samples": p50.samples, "why": "",
                })  # fmt: skip
    return rows


def _unswept(name: str, batch: int, threads: int, why: str) -> dict[str, Any]:
    return {
        "name": name, "batch": batch, "threads": threads, "p50_ms": None, "images_per_second": None, "samples": 0,
        "why": why,
    }  # fmt: skip
