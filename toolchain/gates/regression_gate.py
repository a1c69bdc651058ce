"""Regression gate: compare a candidate with the baseline in the same job; the outcome is pass, fail or cannot tell.

Nothing is compared with stored milliseconds: each round loads both models into one fresh process, and the baseline a second
time as control. Accuracy is compared on the same images; size and int8 coverage are compared exactly.
"""

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from toolchain.config.target import GateLimits, Target
from toolchain.core import progress, statistics
from toolchain.core.errors import ToolchainError
from toolchain.core.types import Interval
from toolchain.edge.timing_process import TimingEffort
from toolchain.export.runtime import load_runtime
from toolchain.gates import gate_accuracy, outcomes, sequential_test
from toolchain.gates.gate_accuracy import MAX_ACCURACY_P_VALUE
from toolchain.gates.gate_inputs import GateImages, GatePair
from toolchain.gates.sequential_test import LatencyTest, Sample
from toolchain.gates.verdict import Outcome, Verdict
from toolchain.measure import machine, paired_timing
from toolchain.measure.paired_timing import Round

CANDIDATE, BASELINE, CONTROL = "candidate", "reference", "reference again"
ROUND_EFFORT = TimingEffort(seconds=1.2, fewest_blocks=7, most_seconds=6.0)  # of a round, three models together
FOOTPRINT_PROCESSES = 3  # processes a model; the smallest footprint counts
WAIVABLE = {"accuracy": "accuracy_drop"}  # name for `--waive`: the check


@dataclass(frozen=True, kw_only=True)
class GateResult:
    """Verdicts and measurements of one recipe."""

    pair: GatePair
    verdicts: tuple[Verdict, ...]
    latency_test: LatencyTest
    rounds: tuple[Round, ...]  # raw; those that confirm a regression come last
    candidate_accuracy: Interval | None = None  # on the test images
    accuracy_p_value: float = 1.0  # McNemar's, one-sided
    waived: tuple[str, ...] = ()  # checks that were not measured and that the user waived by name

    @property
    def outcomes(self) -> tuple[Outcome, ...]:
        """The outcomes that count: of all checks but the waived ones."""
        return tuple(verdict.outcome for verdict in self.verdicts if verdict.check not in self.waived)


def check_environment(target: Target, device: str) -> None:
    """Check that latency measured on this machine, or on the board, is that of the target.

    Args:
        target: the target.
        device: board; empty: this machine.

    Raises:
        ToolchainError: the runtime or the target's instruction set is missing, or the board cannot be reached.
    """
    load_runtime(target.runtime).fingerprint()
    if (isa := machine.integer_isa(device)) != target.isa:
        raise ToolchainError(
            f"{target.name} is {target.isa}, but {device or 'this machine'} is {isa}, so its latency is not the target's; "
            "run the gate on such a machine, or name a board with --device"
        )


def compare_pair(
    pair: GatePair,
    target: Target,
    images: GateImages | str,
    seed: int,
    *,
    attempts: int = 1,
    waive: Collection[str] = (),
) -> GateResult:
    """Compare a candidate with its baseline.

    Args:
        pair: candidate and baseline.
        target: its limits and threads.
        images: test images to compare accuracy on, or the reason why there are none.
        seed: of the order in which models are timed.
        attempts: how many times latency is measured while it cannot be decided.
        waive: checks that need not be measured; a measured one is never waived.

    Raises:
        ToolchainError: a model does not load, or an image cannot be read.
    """
    models = [
        pair.baseline.renamed(BASELINE).timed_model,
        pair.candidate.renamed(CANDIDATE).timed_model,
        pair.baseline.renamed(CONTROL).timed_model,
    ]
    for attempt in range(attempts):
        latency_test, rounds = _time_rounds(
            models, target.gate.regression_threshold, seed + 1000 * attempt, pair.recipe
        )
        if latency_test.outcome != "cannot_tell":
            break
    footprints = {
        name: min(paired_timing.measure_footprint(model).peak_rss_bytes for _ in range(FOOTPRINT_PROCESSES))
        for name, model in ((CANDIDATE, models[1]), (BASELINE, models[0]))
    }
    correct = images if isinstance(images, str) else gate_accuracy.classify(pair, images)
    exact = [
        _judge_growth("size", pair.candidate.artefact.size_bytes, pair.baseline.artefact.size_bytes, target.gate.size_growth, "model files"),
        _judge_growth(
            "memory", footprints[CANDIDATE], footprints[BASELINE], target.gate.memory_growth,
            f"peak resident memory, the smallest of {FOOTPRINT_PROCESSES} processes each",
        ),
        _judge_coverage(pair) if machine.runs_same_kernels(target.isa) and not pair.baseline.timed_model.python else None,
    ]  # fmt: skip
    judged = (_judge_latency(latency_test, target.gate), gate_accuracy.judge(correct, target.gate), *exact)
    verdicts = tuple(verdict for verdict in judged if verdict)
    unmeasured = {verdict.check for verdict in verdicts if verdict.outcome == "not_measured"}
    return GateResult(
        pair=pair, verdicts=verdicts, latency_test=latency_test, rounds=tuple(rounds),
        candidate_accuracy=None if isinstance(correct, str) else statistics.accuracy(correct.candidate),
        accuracy_p_value=1.0 if isinstance(correct, str) else statistics.mcnemar_p_value(correct.baseline, correct.candidate),
        waived=tuple(sorted(unmeasured & set(waive))),
    )  # fmt: skip


def _time_rounds(
    models: Sequence[paired_timing.TimedModel], threshold: float, seed: int, recipe: str
) -> tuple[LatencyTest, list[Round]]:
    """Time rounds until they decide; return the test and all rounds."""
    rounds = list[Round]()
    with progress.show_bar(f"gate {recipe}: paired rounds", sequential_test.FIRST_ROUNDS) as bar:

        def keep(timed: Round) -> None:
            rounds.append(timed)
            bar.step(f"{math.expm1(read_sample(timed).candidate):+.1%}")

        def draw(count: int) -> list[Sample]:
            bar.total = max(bar.total, len(rounds) + count)
            paired_timing.time_rounds(models, len(rounds) + count, seed, keep, skip=len(rounds), effort=ROUND_EFFORT)
            return [read_sample(timed) for timed in rounds[-count:]]

        return sequential_test.run_test(draw, threshold), rounds


def read_sample(timed: Round) -> Sample:
    """Return a round's log ratios of latency to the baseline, of the candidate and of the control."""
    candidate, control = (
        statistics.log_speedup(timed.blocks[name], timed.blocks[BASELINE]) for name in (CANDIDATE, CONTROL)
    )
    return Sample(candidate, control)


def _judge_latency(latency_test: LatencyTest, limits: GateLimits) -> Verdict:
    slower = latency_test.candidate.slower
    why = (
        f"95 % interval {100 * (slower.low - 1):+.1f} to {100 * (slower.high - 1):+.1f} %, {slower.samples} paired rounds; "
        f"a slowdown of {100 * latency_test.candidate.detectable:.1f} % would have been detected"
    )
    return Verdict(
        check="latency_growth", outcome=latency_test.outcome, measured=slower.estimate - 1, limit=limits.regression_threshold,
        why="; ".join(part for part in (latency_test.why, why) if part),
    )  # fmt: skip


def _judge_growth(quantity: str, candidate: int, baseline: int, limit: float | None, source: str) -> Verdict | None:
    if limit is None:
        return None
    growth = candidate / baseline - 1
    return Verdict(
        check=f"{quantity}_growth", outcome="pass" if growth <= limit else "fail", measured=growth, limit=limit,
        why=f"{source}: candidate {candidate:,} bytes, baseline {baseline:,} bytes",
    )  # fmt: skip


def _judge_coverage(pair: GatePair) -> Verdict | None:
    """Compare the shares of the planned layers that the runtime executes in int8; None where a model is not int8."""
    shares, counts = [], []
    for model in (pair.candidate, pair.baseline):
        if model.manifest is None or model.timed_model.precision != "int8":
            return None
        runtime = load_runtime(model.timed_model.runtime)
        coverage = runtime.coverage(Path(model.timed_model.path), precision=model.timed_model.precision)
        planned = len(model.manifest["placement"]["planned"])
        shares.append(coverage.integer / max(planned, 1))
        counts.append(f"{coverage.integer} of {planned}")
    return Verdict(
        check="integer_coverage", outcome="pass" if shares[0] >= shares[1] else "fail", measured=shares[0],
        limit=shares[1], why=f"{counts[0]} planned layers run in int8, {counts[1]} in the baseline",
    )  # fmt: skip


def adjust_for_several_recipes(results: Sequence[GateResult]) -> list[GateResult]:
    """Turn failures that are not significant once the number of models is taken into account (Holm) into "cannot tell"."""
    slower = statistics.holm_adjust([result.latency_test.p_value for result in results])
    worse = statistics.holm_adjust([result.accuracy_p_value for result in results])
    adjusted = []
    for result, latency_p, accuracy_p in zip(results, slower, worse, strict=True):
        doubted = {
            check: f"not significant among {len(results)} models (Holm, p = {p_value:.2g})"
            for check, p_value, level in (
                ("latency_growth", latency_p, sequential_test.ERROR_LEVEL),
                ("accuracy_drop", accuracy_p, MAX_ACCURACY_P_VALUE),
            )
            if p_value >= level
        }
        verdicts = tuple(
            replace(v, outcome="cannot_tell", why=f"{doubted[v.check]}; {v.why}")
            if v.outcome == "fail" and v.check in doubted
            else v
            for v in result.verdicts
        )
        latency = next(v.outcome for v in verdicts if v.check == "latency_growth")
        adjusted.append(replace(result, verdicts=verdicts, latency_test=replace(result.latency_test, outcome=latency)))
    return adjusted


def exit_status(results: Sequence[GateResult]) -> int:
    """Return the exit status of the gate: see `outcomes`."""
    return outcomes.exit_status("gate", [outcome for result in results for outcome in result.outcomes])
