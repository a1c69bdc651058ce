"""What may have disturbed a measurement: other load, clock frequency, heat, and latencies that drift or vary.

Each condition is a value with its figure, so that a pipeline can act on its kind and a reader can judge it. None of them
stops a measurement: paired ratios are hardly affected by most of them, milliseconds are.
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
MAX_FOREIGN_CORES = 0.25  # cores that other processes keep busy
MAX_STOLEN_SHARE = 0.02  # share of a core's time that the hypervisor gives to other machines
MAX_DRIFT = 0.05  # relative change of the frequency, or of latency from the first third of the rounds to the last
MAX_ROUND_DEVIATION = 0.05  # standard deviation of a round's log speed-up
CPU_FOLDER = Path("/sys/devices/system/cpu")
STEADY_GOVERNORS = {"performance", "schedutil"}


@dataclass(frozen=True)
class Condition:
    """One disturbance that a reader of the latencies has to know of."""

    kind: ConditionKind
    text: str
    figure: float | None = None


@dataclass(frozen=True)
class _Counters:
    """The machine's counters at one time."""

    wall_seconds: float
    busy_seconds: float  # of all cores
    stolen_seconds: float
    own_seconds: float  # processor time of this process and its children that have ended
    throttle_events: int
    frequency_mhz: float | None


class ConditionMonitor:
    """Watches the machine's counters from the time it is made."""

    def __init__(self) -> None:
        self._start = _read_counters()

    def conditions(self) -> list[Condition]:
        """Return what has disturbed the machine since the monitor was made."""
        start, end = self._start, _read_counters()
        wall, conditions = max(end.wall_seconds - start.wall_seconds, 1e-9), list[Condition]()
        foreign_cores = (end.busy_seconds - start.busy_seconds - (end.own_seconds - start.own_seconds)) / wall
        if foreign_cores > MAX_FOREIGN_CORES:
            text = f"other processes kept {foreign_cores:.1f} cores busy; ratios are valid, milliseconds are too high"
            conditions.append(Condition("other load", text, foreign_cores))
        stolen_share = (end.stolen_seconds - start.stolen_seconds) / wall
        if stolen_share > MAX_STOLEN_SHARE:
            text = f"the hypervisor gave {stolen_share:.0%} of a core's time to other machines"
            conditions.append(Condition("stolen time", text, stolen_share))
        if end.throttle_events > start.throttle_events:
            events = end.throttle_events - start.throttle_events
            text = f"the processor was throttled {events} times because of heat; improve its cooling"
            conditions.append(Condition("throttled", text, events))
        before, after = start.frequency_mhz, end.frequency_mhz
        if before and after and abs(after / before - 1) > MAX_DRIFT:
            text = f"the clock frequency changed from {before:.0f} to {after:.0f} MHz; ratios are valid, milliseconds are not"
            conditions.append(Condition("frequency", text, after / before - 1))
        return [*conditions, *_check_governor()]


def _read_counters() -> _Counters:
    times, process = psutil.cpu_times(), os.times()
    idle = times.idle + getattr(times, "iowait", 0.0)
    stolen = getattr(times, "steal", 0.0)
    guest = getattr(times, "guest", 0.0) + getattr(times, "guest_nice", 0.0)  # counted in user already
    return _Counters(
        wall_seconds=time.monotonic(), busy_seconds=sum(times) - idle - stolen - guest, stolen_seconds=stolen,
        own_seconds=sum(process[:4]), frequency_mhz=_read_frequency(),
        throttle_events=sum(_read_number(path) for path in CPU_FOLDER.glob("cpu*/thermal_throttle/core_throttle_count")),
    )  # fmt: skip


def _read_frequency() -> float | None:
    with contextlib.suppress(Exception):  # many machines do not report it, and psutil fails on some in various ways
        frequency = psutil.cpu_freq()
        return float(frequency.current) if frequency and frequency.current else None
    return None


def _read_number(path: Path) -> int:
    with contextlib.suppress(OSError, ValueError):
        return int(path.read_text())
    return 0


def _check_governor() -> list[Condition]:
    with contextlib.suppress(OSError):
        name = (CPU_FOLDER / "cpu0" / "cpufreq" / "scaling_governor").read_text().strip()
        if name not in STEADY_GOVERNORS:
            text = f"the frequency governor is {name!r}; `performance` gives steadier latencies"
            return [Condition("governor", text)]
    return []


def check_steadiness(rounds: Sequence[Round], names: Sequence[str]) -> list[Condition]:
    """Return drift of latencies, noise of speed-ups, and models with too few samples for a 99th percentile.

    Args:
        rounds: in the order of measurement.
        names: of the models; speed-ups are those over the first one.
    """
    conditions = []
    third = len(rounds) // 3
    needed = statistics.MIN_SAMPLES_BY_PERCENTILE[99]
    for name in names:
        if third:
            first, last = (np.median(paired_rounds.samples(part, name)) for part in (rounds[:third], rounds[-third:]))
            if abs(change := float(last / first) - 1) > MAX_DRIFT:
                text = f"the latency of {name} changed by {change:+.0%} from the first third of the rounds to the last"
                conditions.append(Condition("drift", text, change))
        if (count := len(paired_rounds.samples(rounds, name))) < needed:
            text = f"{count} samples of {name} are too few for a 99th percentile, which needs {needed}"
            conditions.append(Condition("few samples", text, count))
    noise = max(
        (statistics.timing_noise(paired_rounds.log_speedups(rounds, names[0], name)) for name in names[1:]), default=0.0
    )
    if noise > MAX_ROUND_DEVIATION:
        text = f"speed-ups vary by {noise:.0%} between rounds (standard deviation); rely on the confidence intervals"
        conditions.append(Condition("noise", text, noise))
    return conditions


@contextlib.contextmanager
def pin_to_cores(cores: Sequence[int]) -> Iterator[list[Condition]]:
    """Keep the processes that are started meanwhile on these cores; yield a condition where the system refuses.

    Args:
        cores: numbers of the cores; none: those that this process may use already.
    """
    try:
        before = os.sched_getaffinity(0)
        os.sched_setaffinity(0, cores or before)
    except (AttributeError, OSError) as reason:  # macOS and Windows have no such call
        text = f"the system does not pin processes to cores {', '.join(map(str, cores))}: {reason}"
        yield [Condition("not pinned", text)] if cores else []
        return
    try:
        yield []
    finally:
        os.sched_setaffinity(0, before)
