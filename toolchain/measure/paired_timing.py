"""Comparable latency: all models in one fresh process per round, many rounds, random order, and raw samples kept.

A round is a process of its own (`edge/timing_process.py`). It loads all models in random order, warms each up until it is
steady, then runs blocks; within a block every model has its turn, in random order. Models are compared within a block, so
a machine that slows down slows all of them. The independent samples are the rounds, not the single inferences;
`core/statistics.py` computes the interval from them. Models under different versions of a runtime cannot share a process:
their processes take turns, one block at a time. Peak memory and load time come from a process that loads one model only.
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
    """One artefact as it is timed. The names of the fields are keys of the timing process's protocol."""

    name: str
    runtime: str
    path: str
    precision: Precision
    threads: int
    shape: tuple[int, ...]  # of the input: [1, 3, height, width]
    dtype: str = "float32"
    python: str = ""  # interpreter with another version of the runtime; empty: this interpreter
    device: str = ""  # board to time the model on, such as "ssh:user@host"; empty: this machine


@dataclass(frozen=True, kw_only=True)
class Round:
    """What one process measured: milliseconds by model, [blocks][runs of a block]."""

    seed: int
    blocks: Mapping[str, Sequence[Sequence[float]]]


@dataclass(frozen=True, kw_only=True)
class Footprint:
    """Load time, first inference and peak memory of one model alone in a process."""

    load_ms: float
    first_ms: float
    peak_rss_bytes: int


def time_rounds(
    models: Sequence[TimedModel],
    count: int,
    seed: int,
    keep: Callable[[Round], None],
    *,
    skip: int = 0,
    effort: TimingEffort = FULL_EFFORT,
) -> None:
    """Time all models against one another, each round in a fresh process.

    Args:
        models: to time; their names must differ.
        count: rounds in all.
        seed: of the first round; it decides the order of loading and of blocks.
        keep: receives each round as soon as it is measured.
        skip: rounds that an interrupted run has measured already.
        effort: how long each round may take.

    Raises:
        ToolchainError: the models are on several boards, or a process ended without a result.
    """
    if len({model.device for model in models}) > 1:
        raise ToolchainError("models that are compared must be timed on one board or on this machine, not on several")
    one_interpreter = len({model.python for model in models}) == 1
    for index in range(skip, count):
        blocks = (_time_in_one_process if one_interpreter else _time_in_turns)(models, seed + index, effort)
        keep(Round(seed=seed + index, blocks=blocks))


def measure_footprint(model: TimedModel) -> Footprint:
    """Measure load time, first inference and peak memory of a model alone in a process."""
    return Footprint(**_ask_new_process("footprint", {"side": dataclasses.asdict(model)}, [model]))


def versions(model: TimedModel) -> Mapping[str, str]:
    """Return the name and version of the runtime that a model is timed with."""
    in_this_process = not (model.python or model.device)
    fingerprint: Mapping[str, str] = (
        load_runtime(model.runtime).fingerprint()
        if in_this_process
        else _ask_new_process("versions", {"runtime": model.runtime}, [model])
    )
    return fingerprint


def _build_request(models: Sequence[TimedModel], seed: int, effort: TimingEffort) -> dict[str, Any]:
    rows = [dataclasses.asdict(model) for model in models]
    return {"sides": rows, "seed": seed, "effort": dataclasses.asdict(effort)}


def _time_in_one_process(models: Sequence[TimedModel], seed: int, effort: TimingEffort) -> Mapping[str, Any]:
    """Return the blocks of models that share a process."""
    blocks: Mapping[str, Any] = _ask_new_process("round", _build_request(models, seed, effort), models)
    return blocks


def _time_in_turns(models: Sequence[TimedModel], seed: int, effort: TimingEffort) -> Mapping[str, Any]:
    """Return the blocks of models that have a process each; only one process computes at a time.

    Models of one interpreter could share a process. They do not, because a difference between processes would then look
    like a difference between interpreters.
    """
    order = random.Random(seed)
    load_order = list(models)
    order.shuffle(load_order)
    with contextlib.ExitStack() as stack:
        processes, seconds_per_turn = dict[str, worker_processes.WorkerProcess](), 0.0
        for model in load_order:
            process = processes[model.name] = stack.enter_context(_start_process("turns", [model]))
            seconds_per_turn += process.ask(_build_request([model], seed, effort))
        return timing_process.time_blocks(
            [model.name for model in models], seconds_per_turn, effort, order,
            lambda name, runs: processes[name].ask({"name": name, "runs": runs}),
        )  # fmt: skip


@contextlib.contextmanager
def _start_process(job: str, models: Sequence[TimedModel]) -> Iterator[worker_processes.WorkerProcess]:
    with (
        _prepare_command(job, models) as (command, environment),
        worker_processes.start_worker(command, environment, PROCESS_NAME) as process,
    ):
        yield process


def _ask_new_process(job: str, request: Mapping[str, Any], models: Sequence[TimedModel]) -> Any:
    """Start a timing process for one request, on the models' board where they have one, and return its answer."""
    if models[0].device:
        return boards.connect(models[0].device).ask(job, request)
    with _prepare_command(job, models) as (command, environment):
        try:
            completed = subprocess.run(
                command, env=environment, input=json.dumps(request), capture_output=True, text=True,
                timeout=worker_processes.TIMEOUT_SECONDS, check=False,
            )  # fmt: skip
        except subprocess.TimeoutExpired as reason:
            raise ToolchainError(f"{PROCESS_NAME} gave no result in {worker_processes.TIMEOUT_SECONDS} s") from reason
    if completed.returncode != 0:
        raise worker_processes.describe_failure(PROCESS_NAME, completed.stderr, completed.returncode)
    return worker_processes.parse_line(PROCESS_NAME, last_line(completed.stdout, ""))


@contextlib.contextmanager
def _prepare_command(job: str, models: Sequence[TimedModel]) -> Iterator[tuple[list[str], dict[str, str] | None]]:
    """Yield the command that starts a timing process, and its environment.

    Another interpreter has numpy and a runtime, but not this package. It gets the few files that it needs, alone in a
    folder, because this interpreter's packages must not come before its own.
    """
    python = models[0].python
    if not python:
        yield [sys.executable, "-P", "-m", "toolchain.edge.timing_process", job], None
        return
    with tempfile.TemporaryDirectory() as folder:
        boards.pack_timing_process(Path(folder), sorted({model.runtime for model in models}))
        yield (
            [python, "-m", "toolchain.edge.timing_process", job],
            {**os.environ, "PYTHONPATH": folder, "PYTHONSAFEPATH": "1"},
        )
