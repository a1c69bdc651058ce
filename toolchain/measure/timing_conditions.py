"""What else went on while something was timed: load by others, frequency, heat, and how steady the times were.

Each finding is a value with its figure, so that a pipeline can act on its kind and a reader can judge it. None of them
stops a measurement: paired ratios bear most of this, milliseconds do not.
"""

import contextlib
import os
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import psutil

from toolchain.core import statistics
from toolchain.measure import paired_rounds
from toolchain.measure.paired_timing import Round

ConditionKind = Literal[
    "other load", "stolen time", "frequency", "throttled", "governor", "drift", "noise", "few samples", "not pinned"
]
MAX_FOREIGN_CORES = 0.25  # cores that others keep busy
MAX_STOLEN_SHARE = 0.02  # share of the time that the hypervisor gives to others
MAX_DRIFT = 0.05  # of frequency, or of times from the first third of the rounds to the last
MAX_ROUND_DEVIATION = 0.05  # standard deviation of a round
CPU_FOLDER = Path("/sys/devices/system/cpu")


@dataclass(frozen=True)
class Condition:
    """Something that a figure should not be read without."""

    kind: ConditionKind
    text: str
    figure: float | None = None


@dataclass(frozen=True)
class _Moment:
    at: float
    busy: float  # seconds of all cores
    stolen: float
    own: float  # seconds of this process and its children that have ended
    throttled: int
    frequency: float | None  # MHz


class ConditionMonitor:
    """Counters from its making on."""

    def __init__(self) -> None:
        self._start = _moment()

    def conditions(self) -> list[Condition]:
        """What went on since."""
        start, now = self._start, _moment()
        wall, found = max(now.at - start.at, 1e-9), list[Condition]()
        others = (now.busy - start.busy - (now.own - start.own)) / wall
        if others > MAX_FOREIGN_CORES:
            text = f"other work kept {others:.1f} cores busy; ratios hold, milliseconds are too high"
            found.append(Condition("other load", text, others))
        stolen = (now.stolen - start.stolen) / wall
        if stolen > MAX_STOLEN_SHARE:
            found.append(Condition("stolen time", f"the hypervisor took {stolen:.0%} of a core's time away", stolen))
        if now.throttled > start.throttled:
            times = now.throttled - start.throttled
            found.append(Condition("throttled", f"the processor slowed down for heat {times} times; cool it", times))
        if start.frequency and now.frequency and abs(now.frequency / start.frequency - 1) > MAX_DRIFT:
            change = now.frequency / start.frequency - 1
            text = f"the clock went from {start.frequency:.0f} to {now.frequency:.0f} MHz; ratios hold, milliseconds do not"
            found.append(Condition("frequency", text, change))
        return [*found, *_governed()]


def _moment() -> _Moment:
    times, own = psutil.cpu_times(), os.times()
    idle = times.idle + getattr(times, "iowait", 0.0)
    stolen = getattr(times, "steal", 0.0)
    guest = getattr(times, "guest", 0.0) + getattr(times, "guest_nice", 0.0)  # counted in user already
    return _Moment(
        at=time.monotonic(), busy=sum(times) - idle - stolen - guest, stolen=stolen, own=sum(own[:4]),
        throttled=sum(_number(path) for path in CPU_FOLDER.glob("cpu*/thermal_throttle/core_throttle_count")),
        frequency=_frequency(),
    )  # fmt: skip


def _frequency() -> float | None:
    with contextlib.suppress(Exception):  # many kinds of machines have none, and psutil fails on some in many ways
        found = psutil.cpu_freq()
        return float(found.current) if found and found.current else None
    return None


def _number(path: Path) -> int:
    with contextlib.suppress(OSError, ValueError):
        return int(path.read_text())
    return 0


def _governed() -> list[Condition]:
    with contextlib.suppress(OSError):
        name = (CPU_FOLDER / "cpu0" / "cpufreq" / "scaling_governor").read_text().strip()
        if name not in {"performance", "schedutil"}:
            return [Condition("governor", f"the clock is governed by {name!r}; `performance` gives steadier times")]
    return []


def check_steadiness(measured: Sequence[Round], names: Sequence[str]) -> list[Condition]:
    """Drift of single times, noise of ratios, and percentiles that the samples do not carry."""
    found = []
    third = len(measured) // 3
    for name in names:
        if third:
            first, last = (
                np.median(paired_rounds.samples(part, name)) for part in (measured[:third], measured[-third:])
            )
            if abs(change := float(last / first) - 1) > MAX_DRIFT:
                found.append(
                    Condition("drift", f"{name} took {change:+.0%} longer in the last rounds than in the first", change)
                )
        if (count := len(paired_rounds.samples(measured, name))) < statistics.MIN_SAMPLES_BY_PERCENTILE[99]:
            text = f"{count} samples of {name} do not carry a 99th percentile; {statistics.MIN_SAMPLES_BY_PERCENTILE[99]} would"
            found.append(Condition("few samples", text, count))
    noise = max(
        (statistics.timing_noise(paired_rounds.log_speedups(measured, names[0], name)) for name in names[1:]),
        default=0.0,
    )
    if noise > MAX_ROUND_DEVIATION:
        found.append(
            Condition("noise", f"ratios of rounds vary by {noise:.0%} (standard deviation); trust the intervals", noise)
        )
    return found


@contextlib.contextmanager
def pin_to_cores(cpus: Sequence[int]) -> Iterator[list[Condition]]:
    """Keeps what is started meanwhile on these cores; says so where the system refuses."""
    try:
        before = os.sched_getaffinity(0)
        os.sched_setaffinity(0, cpus or before)
    except (AttributeError, OSError) as reason:  # no such call on macOS and Windows
        text = f"the system does not keep processes on cores {', '.join(map(str, cpus))}: {reason}"
        yield [Condition("not pinned", text)] if cpus else []
        return
    try:
        yield []
    finally:
        os.sched_setaffinity(0, before)
