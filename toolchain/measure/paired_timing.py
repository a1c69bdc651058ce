"""Latency that can be compared: every side in one fresh process, many rounds, random order, raw samples kept.

A round is a process of its own (`timed.py`). It loads all sides in random order, warms each up until it is steady, then
runs blocks; in a block every side has its turn, in random order. Sides are compared inside a block, so a machine that
slows down slows both; rounds, not single inferences, are the independent samples (`stats.py` draws the interval).
Sides under different versions of a runtime cannot share a process: theirs take turns, one block at a time.
Size in memory and load time come from a process that loads one side only.
"""

import contextlib
import dataclasses
import json
import os
import random
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from toolchain.core.errors import ToolchainError, last_line
from toolchain.core.types import Precision
from toolchain.edge import timing_process
from toolchain.edge.timing_process import TimingEffort
from toolchain.export.runtime import load_runtime
from toolchain.measure import boards, worker_processes

PROCESS_NAME = "a timing process"
FULL_EFFORT = TimingEffort()


@dataclass(frozen=True, kw_only=True)
class TimedModel:
    """One artefact as it is to be timed."""

    name: str
    runtime: str
    path: str
    precision: Precision
    threads: int
    shape: tuple[int, ...]  # of the input: [1, 3, height, width]
    dtype: str = "float32"
    python: str = ""  # interpreter with another version of the runtime; empty: this one
    device: str = ""  # board that it is timed on, such as "ssh:user@host"; empty: this machine


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


def time_rounds(
    sides: Sequence[TimedModel],
    count: int,
    seed: int,
    keep: Callable[[Round], None],
    *,
    skip: int = 0,
    effort: TimingEffort = FULL_EFFORT,
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
    if len({side.device for side in sides}) > 1:
        raise ToolchainError("models that are compared must be timed on one device")
    alone = len({side.python for side in sides}) == 1
    for index in range(skip, count):
        measured = (_round if alone else _turns)(sides, seed + index, effort)
        keep(Round(seed=seed + index, blocks=measured))


def measure_footprint(side: TimedModel) -> Footprint:
    """Load time, first inference and peak memory of one side in a process of its own."""
    return Footprint(**_answer("footprint", {"side": dataclasses.asdict(side)}, [side]))


def versions(side: TimedModel) -> Mapping[str, str]:
    """Which version of its runtime a side is timed with."""
    here = not (side.python or side.device)
    found: Mapping[str, str] = (
        load_runtime(side.runtime).fingerprint() if here else _answer("versions", {"runtime": side.runtime}, [side])
    )
    return found


def _request(sides: Sequence[TimedModel], seed: int, effort: TimingEffort) -> dict[str, Any]:
    rows = [dataclasses.asdict(side) for side in sides]
    return {"sides": rows, "seed": seed, "effort": dataclasses.asdict(effort)}


def _round(sides: Sequence[TimedModel], seed: int, effort: TimingEffort) -> Mapping[str, Any]:
    """Blocks of sides that share a process."""
    found: Mapping[str, Any] = _answer("round", _request(sides, seed, effort), sides)
    return found


def _turns(sides: Sequence[TimedModel], seed: int, effort: TimingEffort) -> Mapping[str, Any]:
    """Blocks of sides that have a process each; only one of them computes at a time.

    Sides of one interpreter could share a process, but then what two processes differ in would look like a difference of
    interpreters.
    """
    order = random.Random(seed)
    loading = list(sides)
    order.shuffle(loading)
    with contextlib.ExitStack() as stack:
        owner, once = dict[str, worker_processes.WorkerProcess](), 0.0
        for side in loading:
            process = owner[side.name] = stack.enter_context(_started("turns", [side]))
            once += process.ask(_request([side], seed, effort))
        return timing_process.time_blocks(
            [side.name for side in sides], once, effort, order,
            lambda name, runs: owner[name].ask({"name": name, "runs": runs}),
        )  # fmt: skip


@contextlib.contextmanager
def _started(job: str, sides: Sequence[TimedModel]) -> Iterator[worker_processes.WorkerProcess]:
    with (
        _command(job, sides) as (command, environment),
        worker_processes.start_worker(command, environment, PROCESS_NAME) as process,
    ):
        yield process


def _answer(job: str, request: Mapping[str, Any], sides: Sequence[TimedModel]) -> Any:
    if sides[0].device:
        return boards.connect(sides[0].device).ask(job, request)
    with _command(job, sides) as (command, environment):
        try:
            ended = subprocess.run(
                command, env=environment, input=json.dumps(request), capture_output=True, text=True,
                timeout=worker_processes.TIMEOUT_SECONDS, check=False,
            )  # fmt: skip
        except subprocess.TimeoutExpired as reason:
            raise ToolchainError(f"{PROCESS_NAME} gave no result in {worker_processes.TIMEOUT_SECONDS} s") from reason
    if ended.returncode != 0:
        raise worker_processes.describe_failure(PROCESS_NAME, ended.stderr, ended.returncode)
    return worker_processes.parse_line(PROCESS_NAME, last_line(ended.stdout, ""))


@contextlib.contextmanager
def _command(job: str, sides: Sequence[TimedModel]) -> Iterator[tuple[list[str], dict[str, str] | None]]:
    """How to start a timing process, and its environment.

    Another interpreter has numpy and a runtime, but not this package: it gets the few files that it needs, alone in a
    folder, since this interpreter's own packages must not come before its own.
    """
    python = sides[0].python
    if not python:
        yield [sys.executable, "-P", "-m", "toolchain.edge.timing_process", job], None
        return
    with tempfile.TemporaryDirectory() as folder:
        boards.pack_timing_process(Path(folder), sorted({side.runtime for side in sides}))
        yield (
            [python, "-m", "toolchain.edge.timing_process", job],
            {**os.environ, "PYTHONPATH": folder, "PYTHONSAFEPATH": "1"},
        )
