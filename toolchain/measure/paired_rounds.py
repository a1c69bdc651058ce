"""Paired rounds on disk, each written as soon as it is measured, and the statistics that are computed from them."""

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
    """Return the rounds that an earlier run has measured; none where there is no file."""
    rows = files.read_json(path) if path.exists() else []
    return [Round(seed=row["seed"], blocks=row["blocks"]) for row in rows]


def measure(
    models: Sequence[TimedModel],
    count: int,
    seed: int,
    path: Path,
    label: str,
    effort: TimingEffort = paired_timing.FULL_EFFORT,
) -> list[Round]:
    """Measure the rounds that are missing, write each to `path` at once, and return all of them.

    Args:
        models: to time against one another; their names must differ.
        count: rounds in all, with those that are in `path` already.
        seed: of the first round; it decides the order of loading and of blocks.
        path: JSON file of the rounds.
        label: of the progress bar.
        effort: how long each round may take.

    Raises:
        ToolchainError: as for `paired_timing.time_rounds`.
    """
    rounds = read(path)
    with progress.show_bar(label, count - len(rounds)) as bar:

        def keep(measured: Round) -> None:
            rounds.append(measured)
            files.write_json(path, rounds)
            bar.step()

        paired_timing.time_rounds(models, count, seed, skip=len(rounds), keep=keep, effort=effort)
    return rounds


def samples(rounds: Sequence[Round], model: str) -> list[float]:
    """Return the latency of every inference of a model, by its name, in milliseconds and in the order of measurement."""
    return [latency for measured in rounds for block in measured.blocks[model] for latency in block]


def p50(rounds: Sequence[Round], model: str) -> Interval:
    """Return the median latency of a model in milliseconds; the interval is that of rounds.

    Rounds are independent samples, single inferences are not.
    """
    latencies, blocks_by_round = samples(rounds, model), [measured.blocks[model] for measured in rounds]
    log_medians = [
        math.log(np.median([latency for block in blocks for latency in block])) for blocks in blocks_by_round
    ]
    interval, median = statistics.speedup(log_medians), float(np.median(latencies))
    return Interval(
        estimate=median, low=min(interval.low, median), high=max(interval.high, median), samples=len(latencies)
    )


def log_speedups(rounds: Sequence[Round], baseline: str, candidate: str) -> list[float]:
    """Return the logarithm of the candidate's speed-up over the baseline, by round."""
    return [statistics.log_speedup(measured.blocks[baseline], measured.blocks[candidate]) for measured in rounds]
