"""The process in which models are timed: load and warm up all of them, then run them in blocks that take turns.

It runs wherever Python, numpy and a runtime are installed: on this machine, in an environment with another version of the
runtime, or on a board. So it imports neither torch nor scipy, and of the toolchain only what `list_required_files` names.
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
WARMUP_SECONDS = 0.05  # at least: ten runs of a small model are too short to bring the core up to its full clock
BLOCKS_PER_ROUND = 25
RUNS_PER_BLOCK = 5
ROUND_SECONDS = 4.0  # slow models get fewer blocks rather than longer rounds
MIN_BLOCKS = 5
MIN_BLOCKS_OF_SLOW_MODELS = 3  # where one round would exceed `most_seconds`
WATCHDOG_SECONDS = 60  # without a sign of life from the host, after which the process on a board ends itself

InferenceCall = Callable[[], object]


@dataclass(frozen=True, kw_only=True)
class TimingEffort:
    """How long a round takes: long enough for reported latencies, or short, to choose among many candidates."""

    seconds: float = ROUND_SECONDS  # of inferences in a round, after the warm-up
    warmup_runs: int = WARMUP_RUNS
    warmup_seconds: float = WARMUP_SECONDS
    fewest_blocks: int = MIN_BLOCKS
    most_seconds: float = (
        math.inf
    )  # limit of a round; where it is exceeded, a block is one inference and blocks are fewer
    slow_seconds: float = math.inf  # an inference that takes longer than this counts as warm after two runs


def list_required_files(runtimes: Sequence[str]) -> list[str]:
    """Return the files that a process needs to time models of these runtimes, relative to the package's folder."""
    modules = (
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
    return [f"{name}.py" for name in (*modules, *(f"export/runtimes/{name}" for name in runtimes))]


def find_weight_files(path: Path) -> list[Path]:
    """Return the further files that a model consists of: the weights of an OpenVINO IR."""
    weights = path.with_suffix(".bin")
    return [weights] if path.suffix == ".xml" and weights.is_file() else []


def time_blocks(
    names: Sequence[str],
    seconds_per_turn: float,
    effort: TimingEffort,
    order: random.Random,
    time_block: Callable[[str, int], list[float]],
) -> dict[str, list[list[float]]]:
    """Time the blocks of one round. Within a block every model has its turn, in random order.

    Args:
        names: of the models.
        seconds_per_turn: seconds that one inference of every model takes together.
        time_block: runs a model, by name, so many times and returns the latencies in milliseconds.

    Returns:
        milliseconds by model, [blocks][runs of a block].
    """
    blocks, runs = plan_round(seconds_per_turn, effort)
    samples: dict[str, list[list[float]]] = {name: [] for name in names}
    turn = list(names)
    for _ in range(blocks):
        order.shuffle(turn)
        for name in turn:
            samples[name].append(time_block(name, runs))
    return samples


def plan_round(seconds_per_turn: float, effort: TimingEffort) -> tuple[int, int]:
    """Return the number of blocks of a round and of runs in a block.

    Args:
        seconds_per_turn: seconds that one inference of every model takes together.
    """
    wanted = effort.seconds / (seconds_per_turn * RUNS_PER_BLOCK)
    blocks = int(max(effort.fewest_blocks, min(BLOCKS_PER_ROUND, wanted)))
    if blocks * (RUNS_PER_BLOCK + 1) * seconds_per_turn <= effort.most_seconds:
        return blocks, RUNS_PER_BLOCK
    # an inference this long averages out the noise by itself, so a block needs only one
    return max(MIN_BLOCKS_OF_SLOW_MODELS, min(blocks, int(effort.most_seconds / (2 * seconds_per_turn)))), 1


def _import_runtime(name: str) -> Any:
    return importlib.import_module(f"toolchain.export.runtimes.{name}")


def _load_model(side: Mapping[str, Any]) -> InferenceCall:
    """Open the model of one side of a comparison, and return a call that runs it on random input."""
    runtime = _import_runtime(side["runtime"])
    session = runtime.open(Path(side["path"]), threads=side["threads"], precision=side["precision"])
    generator, dtype = np.random.default_rng(0), np.dtype(side["dtype"])
    if dtype.kind == "f":
        image = generator.standard_normal(side["shape"], dtype=np.float32).astype(dtype, copy=False)
    else:
        image = generator.integers(0, 128, side["shape"]).astype(dtype)
    return lambda: session.run(image)


def _load_models(request: Mapping[str, Any], order: random.Random) -> tuple[dict[str, InferenceCall], float]:
    """Load and warm up all models of a request, in random order.

    Returns:
        the calls by name, and the seconds that one inference of every model takes together.
    """
    sides = list(request["sides"])
    order.shuffle(sides)
    calls = {side["name"]: _load_model(side) for side in sides}
    effort = TimingEffort(**request["effort"])
    return calls, sum(_warm_up(call, effort) for call in calls.values())


def _time_block(call: InferenceCall, runs: int) -> list[float]:
    call()  # untimed: the other models have evicted this one's data from the caches, as a steady stream would not
    return [_time_call(call) for _ in range(runs)]


def _run_round(request: Mapping[str, Any]) -> dict[str, list[list[float]]]:
    """Time one round of all models in this process."""
    order = random.Random(request["seed"])
    calls, seconds_per_turn = _load_models(request, order)
    effort = TimingEffort(**request["effort"])
    return time_blocks(list(calls), seconds_per_turn, effort, order, lambda name, runs: _time_block(calls[name], runs))


def _run_turns(request: Mapping[str, Any]) -> dict[str, list[list[float]]]:
    """Time one block for each line of standard input, so that models here take turns with those of another process."""
    calls, seconds_per_turn = _load_models(request, random.Random(request["seed"]))
    print(json.dumps(seconds_per_turn), flush=True)
    for line in sys.stdin:
        turn = json.loads(line)
        print(json.dumps(_time_block(calls[turn["name"]], turn["runs"])), flush=True)
    return {}


def _warm_up(call: InferenceCall, effort: TimingEffort) -> float:
    """Run a model until it is warm, and return the median latency of the later half of the runs, in seconds."""
    started = time.perf_counter()
    seconds: list[float] = []
    while len(seconds) < effort.warmup_runs or time.perf_counter() - started < effort.warmup_seconds:
        seconds.append(_time_call(call) / 1e3)
        if len(seconds) == 2 and seconds[1] > effort.slow_seconds:
            break
    return float(np.median(seconds[len(seconds) // 2 :]))


def _time_call(call: InferenceCall) -> float:
    """Return how long a call takes, in milliseconds."""
    start = time.perf_counter_ns()
    call()
    return (time.perf_counter_ns() - start) / 1e6


def _run_footprint(request: Mapping[str, Any]) -> dict[str, float]:
    """Measure load time, first inference and peak memory of one model that is alone in this process."""
    _import_runtime(request["side"]["runtime"]).library()  # importing the library is not part of the load time
    start = time.perf_counter()
    call = _load_model(request["side"])
    loaded = time.perf_counter()
    first_ms = _time_call(call)
    for _ in range(WARMUP_RUNS):
        call()
    return {"load_ms": (loaded - start) * 1e3, "first_ms": first_ms, "peak_rss_bytes": _read_peak_rss()}


def _run_versions(request: Mapping[str, Any]) -> dict[str, str]:
    """Return the version of a runtime that this interpreter has."""
    return dict(_import_runtime(request["runtime"]).fingerprint())


def _run_available(request: Mapping[str, Any]) -> bool:
    """Return whether the processor computes in a precision."""
    return bool(_import_runtime(request["runtime"]).available(request["precision"]))


def _run_machine(request: Mapping[str, Any]) -> dict[str, str | int]:
    """Return what this machine's processor is."""
    return processor.describe()


def _start_watchdog() -> None:
    """End this process when the host closes the connection or goes silent, so that a board is not left computing."""

    def watch() -> None:
        # os.read and not sys.stdin: a waiting thread would hold the lock of sys.stdin when the process ends
        while select.select([0], [], [], WATCHDOG_SECONDS)[0] and os.read(0, 4096):
            pass
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _read_peak_rss() -> int:
    """Return the peak resident memory of this process in bytes.

    `VmHWM` counts this process alone; `getrusage` would include the size of the parent that it was forked from.
    """
    status = Path("/proc/self/status")
    if status.exists():
        lines = dict(line.split(":", 1) for line in status.read_text().splitlines())
        return int(lines["VmHWM"].split()[0]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def main() -> None:
    """Run the job that the first argument names.

    The request is JSON in the first line of standard input, the result is JSON in the last line of standard output.
    """
    jobs: dict[str, Callable[[Mapping[str, Any]], Any]] = {
        "round": _run_round, "turns": _run_turns, "footprint": _run_footprint, "versions": _run_versions,
        "machine": _run_machine, "available": _run_available,
    }  # fmt: skip
    request = json.loads(sys.stdin.readline())
    if "--leash" in sys.argv:
        _start_watchdog()
    print(json.dumps(jobs[sys.argv[1]](request)), flush=True)


if __name__ == "__main__":
    main()
