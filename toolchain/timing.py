"""Latency that can be compared: every side in one fresh process, many rounds, random order, raw samples kept.

A round is a process of its own. It loads all sides in random order, warms each up until it is steady, then runs
blocks; in a block every side has its turn, in random order. Sides are compared inside a block, so a machine that
slows down slows both; rounds, not single inferences, are the independent samples (`stats.py` draws the interval).
Size in memory and load time come from a process that loads one side only.
"""

import dataclasses
import importlib
import json
import math
import random
import resource
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from toolchain.errors import ToolchainError
from toolchain.values import Precision

WARMUP_RUNS = 10
WARMUP_SECONDS = 0.05  # at least, for kernels so short that ten runs do not wake the core
BLOCKS = 25
RUNS_A_BLOCK = 5
ROUND_SECONDS = 4.0  # slow models get fewer blocks rather than longer rounds
FEWEST_BLOCKS = 5
LEAST_BLOCKS = 3  # of models so slow that a round must be cut short
ROUND_TIMEOUT_SECONDS = 600


@dataclass(frozen=True, kw_only=True)
class Side:
    """One artefact as it is to be timed."""

    name: str
    runtime: str
    path: str
    precision: Precision
    threads: int
    shape: tuple[int, ...]  # of the input: [1, 3, height, width]


@dataclass(frozen=True, kw_only=True)
class Round:
    """What one process measured: milliseconds by side, [blocks][runs of a block]."""

    seed: int
    blocks: Mapping[str, Sequence[Sequence[float]]]


@dataclass(frozen=True, kw_only=True)
class Footprint:
    """One side alone in a process."""

    load_ms: float
    first_ms: float
    peak_rss_bytes: int


@dataclass(frozen=True, kw_only=True)
class Effort:
    """How long a round takes: exact enough to report, or short, to choose among many candidates."""

    seconds: float = ROUND_SECONDS  # of inferences, after warming up
    warmup_runs: int = WARMUP_RUNS
    fewest_blocks: int = FEWEST_BLOCKS
    most_seconds: float = math.inf  # of a round: beyond it blocks are single inferences, and fewer still
    slow_seconds: float = math.inf  # of an inference: one that takes longer is warm after two


REPORTED = Effort()


def rounds(
    sides: Sequence[Side],
    count: int,
    seed: int,
    keep: Callable[[Round], None],
    *,
    skip: int = 0,
    effort: Effort = REPORTED,
) -> None:
    """Times all sides against one another, each round in a fresh process.

    Args:
        sides: what to time; names must differ.
        count: rounds in all.
        seed: decides load order and block order.
        keep: takes each round as soon as it is measured.
        skip: rounds that an interrupted run has measured already.
        effort: how long each round may take.

    Raises:
        ToolchainError: a process ended without a result.
    """
    for index in range(skip, count):
        request = {
            "sides": [dataclasses.asdict(side) for side in sides],
            "seed": seed + index,
            "effort": dataclasses.asdict(effort),
        }
        keep(Round(seed=seed + index, blocks=_child("round", request)))


def footprint(side: Side) -> Footprint:
    """Load time, first inference and peak memory of one side in a process of its own."""
    return Footprint(**_child("footprint", {"side": dataclasses.asdict(side)}))


def _child(job: str, request: Mapping[str, Any]) -> Any:
    command = [sys.executable, "-m", "toolchain.timing", job]
    try:
        ended = subprocess.run(
            command, input=json.dumps(request), capture_output=True, text=True, timeout=ROUND_TIMEOUT_SECONDS, check=False
        )  # fmt: skip
    except subprocess.TimeoutExpired as reason:
        raise ToolchainError(f"a timing process gave no result in {ROUND_TIMEOUT_SECONDS} s") from reason
    if ended.returncode != 0:
        last = ended.stderr.strip().splitlines()[-1:] or [f"exit status {ended.returncode}"]
        raise ToolchainError(f"a timing process failed: {last[0]}")
    return json.loads(ended.stdout.splitlines()[-1])


# --- inside the child process: no torch, no scipy -----------------------------------------------------------


def _load(side: Mapping[str, Any]) -> Callable[[], object]:
    runtime = importlib.import_module(f"toolchain.runtimes.{side['runtime']}")
    session = runtime.open(Path(side["path"]), threads=side["threads"], precision=side["precision"])
    image = np.random.default_rng(0).standard_normal(side["shape"], dtype=np.float32)
    return lambda: session.run(image)


def _run_round(request: Mapping[str, Any]) -> dict[str, list[list[float]]]:
    order = random.Random(request["seed"])
    sides = list(request["sides"])
    order.shuffle(sides)
    calls = {side["name"]: _load(side) for side in sides}
    effort = Effort(**request["effort"])
    once = sum(_warm_up(call, effort) for call in calls.values())
    blocks, runs = _extent(once, effort)
    samples: dict[str, list[list[float]]] = {name: [] for name in calls}
    names = list(calls)
    for _ in range(blocks):
        order.shuffle(names)
        for name in names:
            calls[name]()  # its data is cold after the other sides' turns; that is not the latency of a steady stream
            samples[name].append([_milliseconds(calls[name]) for _ in range(runs)])
    return samples


def _extent(once: float, effort: Effort) -> tuple[int, int]:
    """Blocks of a round and runs of a block, where one inference of every side takes `once` seconds together."""
    blocks = int(max(effort.fewest_blocks, min(BLOCKS, effort.seconds / (once * RUNS_A_BLOCK))))
    if blocks * (RUNS_A_BLOCK + 1) * once <= effort.most_seconds:
        return blocks, RUNS_A_BLOCK
    # an inference that takes so long averages over the noise itself
    return max(LEAST_BLOCKS, min(blocks, int(effort.most_seconds / (2 * once)))), 1


def _warm_up(call: Callable[[], object], effort: Effort) -> float:
    """Runs until warm; the median of the last runs in seconds."""
    began = time.perf_counter()
    taken: list[float] = []
    while len(taken) < effort.warmup_runs or time.perf_counter() - began < WARMUP_SECONDS:
        taken.append(_milliseconds(call) / 1e3)
        if len(taken) == 2 and taken[1] > effort.slow_seconds:
            break
    return float(np.median(taken[len(taken) // 2 :]))


def _milliseconds(call: Callable[[], object]) -> float:
    start = time.perf_counter_ns()
    call()
    return (time.perf_counter_ns() - start) / 1e6


def _run_footprint(request: Mapping[str, Any]) -> dict[str, float]:
    importlib.import_module(f"toolchain.runtimes.{request['side']['runtime']}").library()  # its import is not our load
    start = time.perf_counter()
    call = _load(request["side"])
    loaded = time.perf_counter()
    first = _milliseconds(call)
    for _ in range(WARMUP_RUNS):
        call()
    return {"load_ms": (loaded - start) * 1e3, "first_ms": first, "peak_rss_bytes": _peak_rss()}


def _peak_rss() -> int:
    """Of this process image alone; `getrusage` would carry over the size of the parent it was forked from."""
    status = Path("/proc/self/status")
    if status.exists():
        lines = dict(line.split(":", 1) for line in status.read_text().splitlines())
        return int(lines["VmHWM"].split()[0]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def main() -> None:
    """Entry of the child process: a JSON request on standard input, a JSON answer on the last line of output."""
    job = {"round": _run_round, "footprint": _run_footprint}[sys.argv[1]]
    print(json.dumps(job(json.load(sys.stdin))))


if __name__ == "__main__":
    main()
