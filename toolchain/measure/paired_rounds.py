"""Paired rounds that are on disk as soon as they are measured, and what is read from them."""

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from toolchain.core import files, progress, statistics
from toolchain.core.types import Interval
from toolchain.edge.timing_process import TimingEffort
from toolchain.measure import paired_timing
from toolchain.measure.paired_timing import Round, TimedModel


def read(path: Path) -> list[Round]:
    """Rounds that an earlier run has measured."""
    rows = files.read_json(path) if path.exists() else []
    return [Round(seed=row["seed"], blocks=row["blocks"]) for row in rows]


def measure(
    sides: Sequence[TimedModel],
    count: int,
    seed: int,
    path: Path,
    label: str,
    effort: TimingEffort = paired_timing.FULL_EFFORT,
) -> list[Round]:
    """Measures what is missing of `count` rounds; each is written to `path` at once."""
    measured = read(path)
    with progress.show_bar(label, count - len(measured)) as bar:

        def keep(one: Round) -> None:
            measured.append(one)
            files.write_json(path, measured)
            bar.step()

        paired_timing.time_rounds(sides, count, seed, skip=len(measured), keep=keep, effort=effort)
    return measured


def samples(measured: Sequence[Round], side: str) -> list[float]:
    """Every single inference of a side, in milliseconds and in the order in which they were made."""
    return [sample for one in measured for block in one.blocks[side] for sample in block]


def p50(measured: Sequence[Round], side: str) -> Interval:
    """Median of all inferences; its interval is that of the rounds, which unlike inferences are independent."""
    found, own = samples(measured, side), [one.blocks[side] for one in measured]
    medians = [math.log(np.median([sample for block in blocks for sample in block])) for blocks in own]
    middle, half = statistics.speedup(medians), float(np.median(found))
    return Interval(estimate=half, low=min(middle.low, half), high=max(middle.high, half), samples=len(found))


def log_speedups(measured: Sequence[Round], base: str, other: str) -> list[float]:
    """By round, the logarithm of how many times faster `other` is than `base`."""
    return [statistics.log_speedup(one.blocks[base], one.blocks[other]) for one in measured]
