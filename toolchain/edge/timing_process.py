"""The process in which models are timed: every side loaded, warmed up, and run in blocks that take turns.

Runs wherever Python, numpy and a runtime are: here, under another version of the runtime, or on a board. So it imports
neither torch nor scipy, and of the toolchain only what `files()` lists.
"""

import importlib
import json
import math
import os
import random
import resource
import select
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from toolchain.edge import processor

WARMUP_RUNS = 10
WARMUP_SECONDS = 0.05  # at least, for kernels so short that ten runs do not wake the core
BLOCKS_PER_ROUND = 25
RUNS_PER_BLOCK = 5
ROUND_SECONDS = 4.0  # slow models get fewer blocks rather than longer rounds
MIN_BLOCKS = 5
MIN_BLOCKS_OF_SLOW_MODELS = 3  # of models so slow that a round must be cut short
WATCHDOG_SECONDS = 60  # after which a process on a board takes it that nobody waits for it any more

InferenceCall = Callable[[], object]


@dataclass(frozen=True, kw_only=True)
class TimingEffort:
    """How long a round takes: exact enough to report, or short, to choose among many candidates."""

    seconds: float = ROUND_SECONDS  # of inferences, after warming up
    warmup_runs: int = WARMUP_RUNS
    warmup_seconds: float = WARMUP_SECONDS
    fewest_blocks: int = MIN_BLOCKS
    most_seconds: float = math.inf  # of a round: beyond it blocks are single inferences, and fewer still
    slow_seconds: float = math.inf  # of an inference: one that takes longer is warm after two


def list_required_files(runtimes: Sequence[str]) -> list[str]:
    """What of the package a process needs that times models of these runtimes, relative to the package's folder."""
    rooms = (
        "__init__",
        "core/__init__",
        "core/errors",
        "core/files",
        "core/progress",
        "core/types",
        "config/__init__",
        "config/packaging",
        "edge/__init__",
        "edge/processor",
        "edge/timing_process",
        "export/__init__",
        "export/runtimes/__init__",
    )
    return [f"{name}.py" for name in (*rooms, *(f"export/runtimes/{name}" for name in runtimes))]


def find_weight_files(path: Path) -> list[Path]:
    """Further files that a model consists of: the weights of an OpenVINO IR."""
    weights = path.with_suffix(".bin")
    return [weights] if path.suffix == ".xml" and weights.is_file() else []


def time_blocks(
    names: Sequence[str],
    once: float,
    effort: TimingEffort,
    order: random.Random,
    block: Callable[[str, int], list[float]],
) -> dict[str, list[list[float]]]:
    """A round's blocks: in each every side has its turn, in random order.

    Args:
        once: seconds that one inference of every side takes together.
        block: times a side so many times, in milliseconds.

    Returns:
        milliseconds by side, [blocks][runs of a block].
    """
    count, runs = plan_round(once, effort)
    samples: dict[str, list[list[float]]] = {name: [] for name in names}
    turn = list(names)
    for _ in range(count):
        order.shuffle(turn)
        for name in turn:
            samples[name].append(block(name, runs))
    return samples


def plan_round(once: float, effort: TimingEffort) -> tuple[int, int]:
    """Blocks of a round and runs of a block, where one inference of every side takes `once` seconds together."""
    count = int(max(effort.fewest_blocks, min(BLOCKS_PER_ROUND, effort.seconds / (once * RUNS_PER_BLOCK))))
    if count * (RUNS_PER_BLOCK + 1) * once <= effort.most_seconds:
        return count, RUNS_PER_BLOCK
    # an inference that takes so long averages over the noise itself
    return max(MIN_BLOCKS_OF_SLOW_MODELS, min(count, int(effort.most_seconds / (2 * once)))), 1


def _load(side: Mapping[str, Any]) -> InferenceCall:
    runtime = importlib.import_module(f"toolchain.export.runtimes.{side['runtime']}")
    session = runtime.open(Path(side["path"]), threads=side["threads"], precision=side["precision"])
    generator, dtype = np.random.default_rng(0), np.dtype(side["dtype"])
    if dtype.kind == "f":
        image = generator.standard_normal(side["shape"], dtype=np.float32).astype(dtype, copy=False)
    else:
        image = generator.integers(0, 128, side["shape"]).astype(dtype)
    return lambda: session.run(image)


def _loaded(request: Mapping[str, Any], order: random.Random) -> tuple[dict[str, InferenceCall], float]:
    """All sides of a request in random order, warm; and the seconds that one inference of each takes together."""
    sides = list(request["sides"])
    order.shuffle(sides)
    calls = {side["name"]: _load(side) for side in sides}
    effort = TimingEffort(**request["effort"])
    return calls, sum(_warm_up(call, effort) for call in calls.values())


def _block(call: InferenceCall, runs: int) -> list[float]:
    call()  # its data is cold after the other sides' turns; that is not the latency of a steady stream
    return [_milliseconds(call) for _ in range(runs)]


def _run_round(request: Mapping[str, Any]) -> dict[str, list[list[float]]]:
    order = random.Random(request["seed"])
    calls, once = _loaded(request, order)
    return time_blocks(
        list(calls), once, TimingEffort(**request["effort"]), order, lambda name, runs: _block(calls[name], runs)
    )


def _run_turns(request: Mapping[str, Any]) -> dict[str, list[list[float]]]:
    """Times a block whenever a line asks for one: its side takes turns with sides of another process."""
    calls, once = _loaded(request, random.Random(request["seed"]))
    print(json.dumps(once), flush=True)
    for line in sys.stdin:
        asked = json.loads(line)
        print(json.dumps(_block(calls[asked["name"]], asked["runs"])), flush=True)
    return {}


def _warm_up(call: InferenceCall, effort: TimingEffort) -> float:
    """Runs until warm; the median of the last runs in seconds."""
    began = time.perf_counter()
    taken: list[float] = []
    while len(taken) < effort.warmup_runs or time.perf_counter() - began < effort.warmup_seconds:
        taken.append(_milliseconds(call) / 1e3)
        if len(taken) == 2 and taken[1] > effort.slow_seconds:
            break
    return float(np.median(taken[len(taken) // 2 :]))


def _milliseconds(call: InferenceCall) -> float:
    start = time.perf_counter_ns()
    call()
    return (time.perf_counter_ns() - start) / 1e6


def _run_footprint(request: Mapping[str, Any]) -> dict[str, float]:
    importlib.import_module(
        f"toolchain.export.runtimes.{request['side']['runtime']}"
    ).library()  # its import is not our load
    start = time.perf_counter()
    call = _load(request["side"])
    loaded = time.perf_counter()
    first = _milliseconds(call)
    for _ in range(WARMUP_RUNS):
        call()
    return {"load_ms": (loaded - start) * 1e3, "first_ms": first, "peak_rss_bytes": _peak_rss()}


def _run_versions(request: Mapping[str, Any]) -> dict[str, str]:
    """Which version of a runtime this interpreter has."""
    found: dict[str, str] = dict(
        importlib.import_module(f"toolchain.export.runtimes.{request['runtime']}").fingerprint()
    )
    return found


def _run_available(request: Mapping[str, Any]) -> bool:
    """Whether the processor computes in a precision."""
    room = importlib.import_module(f"toolchain.export.runtimes.{request['runtime']}")
    return bool(room.available(request["precision"]))


def _run_machine(request: Mapping[str, Any]) -> dict[str, str | int]:
    """Which processor this is."""
    return processor.describe()


def _leash() -> None:
    """Ends this process as soon as whoever asked is gone: a board must not be left computing for nobody."""

    def watch() -> None:
        # not through sys.stdin, whose lock a waiting thread would hold when the process ends
        while select.select([0], [], [], WATCHDOG_SECONDS)[0] and os.read(0, 4096):
            pass
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _peak_rss() -> int:
    """Of this process image alone; `getrusage` would carry over the size of the parent it was forked from."""
    status = Path("/proc/self/status")
    if status.exists():
        lines = dict(line.split(":", 1) for line in status.read_text().splitlines())
        return int(lines["VmHWM"].split()[0]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def main() -> None:
    """Entry of the process: a JSON request as the first line of standard input, a JSON answer as the last of output."""
    jobs: dict[str, Callable[[Mapping[str, Any]], Any]] = {
        "round": _run_round, "turns": _run_turns, "footprint": _run_footprint, "versions": _run_versions,
        "machine": _run_machine, "available": _run_available,
    }  # fmt: skip
    request = json.loads(sys.stdin.readline())
    if "--leash" in sys.argv:
        _leash()
    print(json.dumps(jobs[sys.argv[1]](request)), flush=True)


if __name__ == "__main__":
    main()
