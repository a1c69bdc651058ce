"""gate: candidate against the accepted reference, in the same job -> pass, regression or cannot tell.

Nothing is compared with stored milliseconds: both artefacts are loaded into one process, round by round, with the
reference a second time as control. Accuracy is compared over the same pictures, size and coverage exactly.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from toolchain.config.target import GateLimits, Target
from toolchain.core import progress, statistics
from toolchain.core.errors import ToolchainError
from toolchain.core.types import Interval
from toolchain.edge import run as runner
from toolchain.edge.timing_process import TimingEffort
from toolchain.export.runtime import load_runtime
from toolchain.gates import sequential_test
from toolchain.gates.gate_inputs import GateImages, GatePair
from toolchain.gates.sequential_test import LatencyTest, Sample
from toolchain.gates.verdict import Verdict
from toolchain.measure import machine, paired_timing
from toolchain.measure.model_files import ModelFile
from toolchain.measure.paired_timing import Round

CANDIDATE, BASELINE, CONTROL = "candidate", "reference", "reference again"
ROUND_EFFORT = TimingEffort(seconds=1.2, fewest_blocks=7, most_seconds=6.0)  # of a round, three sides together
MAX_ACCURACY_P_VALUE = 0.05  # that a loss which is called one is none
FOOTPRINT_PROCESSES = 3  # processes a side; the least counts
EXIT_STATUS = {"fail": 1, "cannot_tell": 3}  # exit status, the worst first


@dataclass(frozen=True, kw_only=True)
class GateResult:
    """What came out for one recipe."""

    pair: GatePair
    verdicts: tuple[Verdict, ...]
    latency_test: LatencyTest
    rounds: tuple[Round, ...]  # raw, those that confirm a regression at the end
    candidate_accuracy: Interval | None = None  # the candidate's on the test pictures
    accuracy_p_value: float = 1.0  # of answers like these where the candidate is as good


def check_environment(target: Target, device: str) -> None:
    """Refuses where this machine's, or the board's, times say nothing of the target.

    Raises:
        ToolchainError: it lacks the target's instructions, or the runtime; or the board is not there.
    """
    load_runtime(target.runtime).fingerprint()
    if (kind := machine.integer_isa(device)) != target.isa:
        raise ToolchainError(
            f"{target.name} is {target.isa} and {device or 'this machine'} is {kind}: its times say nothing of that target; "
            "run the gate on such a machine, or name a board with --device"
        )


def compare_pair(
    pair: GatePair, target: Target, pictures: GateImages | None, seed: int, attempts: int = 1
) -> GateResult:
    """Compares one candidate with its reference.

    Args:
        pictures: that accuracy is compared on; None: it is not.
        seed: of the order of rounds.
        attempts: how often latency is tried anew where it cannot be told.

    Raises:
        ToolchainError: one does not load.
    """
    sides = [
        pair.baseline.renamed(BASELINE).timed_model,
        pair.candidate.renamed(CANDIDATE).timed_model,
        pair.baseline.renamed(CONTROL).timed_model,
    ]
    for attempt in range(attempts):
        conducted, measured = _conducted(sides, target.gate.regression_threshold, seed + 1000 * attempt, pair.recipe)
        if conducted.outcome != "cannot_tell":
            break
    footprints = {
        name: min(paired_timing.measure_footprint(side).peak_rss_bytes for _ in range(FOOTPRINT_PROCESSES))
        for name, side in ((CANDIDATE, sides[1]), (BASELINE, sides[0]))
    }
    answers = None if pictures is None or pair.baseline.timed_model.python else _answers(pair, pictures)
    exact = [
        _grown("size", pair.candidate.artefact.size_bytes, pair.baseline.artefact.size_bytes, target.gate.size_growth, "model files"),
        _grown(
            "memory", footprints[CANDIDATE], footprints[BASELINE], target.gate.memory_growth,
            f"peak resident memory, the least of {FOOTPRINT_PROCESSES} processes each",
        ),
        _covered(pair) if machine.runs_same_kernels(target.isa) and not pair.baseline.timed_model.python else None,
    ]  # fmt: skip
    return GateResult(
        pair=pair,
        verdicts=tuple(v for v in (_slower(conducted, target.gate), _accuracy(answers, target.gate), *exact) if v),
        latency_test=conducted, rounds=tuple(measured),
        candidate_accuracy=None if answers is None else statistics.accuracy(answers[0]),
        accuracy_p_value=1.0 if answers is None else statistics.mcnemar_p_value(answers[1], answers[0]),
    )  # fmt: skip


def _conducted(
    sides: Sequence[paired_timing.TimedModel], threshold: float, seed: int, recipe: str
) -> tuple[LatencyTest, list[Round]]:
    """Rounds until they decide, and all of them."""
    measured = list[Round]()
    with progress.show_bar(f"gate {recipe}: paired rounds", sequential_test.FIRST_ROUNDS) as bar:

        def keep(one: Round) -> None:
            measured.append(one)
            bar.step(f"{math.expm1(read_sample(one).candidate):+.1%}")

        def draw(count: int) -> list[Sample]:
            bar.total = max(bar.total, len(measured) + count)
            paired_timing.time_rounds(sides, len(measured) + count, seed, keep, skip=len(measured), effort=ROUND_EFFORT)
            return [read_sample(one) for one in measured[-count:]]

        return sequential_test.run_test(draw, threshold), measured


def read_sample(one: Round) -> Sample:
    """What a round says of both sides."""
    candidate, control = (
        statistics.log_speedup(one.blocks[side], one.blocks[BASELINE]) for side in (CANDIDATE, CONTROL)
    )
    return Sample(candidate, control)


def _slower(conducted: LatencyTest, allowed: GateLimits) -> Verdict:
    slower = conducted.candidate.slower
    why = (
        f"95 % interval {100 * (slower.low - 1):+.1f} to {100 * (slower.high - 1):+.1f} %, {slower.samples} paired rounds; "
        f"a slowdown of {100 * conducted.candidate.detectable:.1f} % would have been called a regression"
    )
    return Verdict(
        check="latency_growth", outcome=conducted.outcome, measured=slower.estimate - 1, limit=allowed.regression_threshold,
        why="; ".join(part for part in (conducted.why, why) if part),
    )  # fmt: skip


def _grown(what: str, candidate: int, reference: int, allowed: float | None, where: str) -> Verdict | None:
    if allowed is None:
        return None
    growth = candidate / reference - 1
    return Verdict(
        check=f"{what}_growth", outcome="pass" if growth <= allowed else "fail", measured=growth, limit=allowed,
        why=f"{where}: {candidate:,} bytes, the reference {reference:,}",
    )  # fmt: skip


def _covered(pair: GatePair) -> Verdict | None:
    """Whether as large a share of the layers that should runs in integers, by the runtime's own executed graph."""
    shares, said = [], []
    for one in (pair.candidate, pair.baseline):
        if one.manifest is None or one.timed_model.precision != "int8":
            return None
        room = load_runtime(one.timed_model.runtime)
        found = room.coverage(Path(one.timed_model.path), precision=one.timed_model.precision)
        planned = len(one.manifest["placement"]["planned"])
        shares.append(found.integer / max(planned, 1))
        said.append(f"{found.integer} of {planned}")
    return Verdict(
        check="integer_coverage", outcome="pass" if shares[0] >= shares[1] else "fail", measured=shares[0],
        limit=shares[1], why=f"{said[0]} planned layers run in integers, {said[1]} of the reference",
    )  # fmt: skip


def _accuracy(answers: tuple[np.ndarray, np.ndarray] | None, allowed: GateLimits) -> Verdict | None:
    """Fails where more is lost than allowed and losing as such is not chance; where it may be chance, it cannot be told."""
    if allowed.accuracy_drop is None:
        return None
    limit = allowed.accuracy_drop
    if answers is None:
        return Verdict(
            check="accuracy_drop", outcome="not_measured", measured=None, limit=limit,
            why="there are no test pictures (name their folder with --data), or the reference runs in another environment",
        )  # fmt: skip
    candidate, reference = answers
    drop, chance = statistics.accuracy_drop(reference, candidate), statistics.mcnemar_p_value(reference, candidate)
    within = drop.estimate <= limit
    outcome: Any = "pass" if within else "fail" if chance < MAX_ACCURACY_P_VALUE else "cannot_tell"
    needed = statistics.images_needed(max(limit, 1e-3), statistics.disagreement_share(reference, candidate))
    why = (
        f"{reference.mean():.2%} -> {candidate.mean():.2%}, 95 % interval of the loss {100 * drop.low:+.2f} to "
        f"{100 * drop.high:+.2f} points over {drop.samples} pictures, p = {chance:.2g} (McNemar, exact)"
    )
    if outcome == "cannot_tell":
        why += f"; about {needed} pictures would tell"
    elif outcome == "pass" and drop.high > limit:
        why += f"; so few pictures do not rule out a loss of {100 * drop.high:.1f}"
    return Verdict(check="accuracy_drop", outcome=outcome, measured=drop.estimate, limit=limit, why=why)


def _answers(pair: GatePair, shown: GateImages) -> tuple[np.ndarray, np.ndarray]:
    """Which test pictures candidate and reference get right, bool [pictures] each."""
    sides = (pair.candidate, pair.baseline)
    with progress.show_bar(f"gate {pair.recipe}: test pictures", len(sides) * len(shown.files)) as bar:
        first, second = (_right(one, shown, bar.step) for one in sides)
    return first, second


def _right(subject: ModelFile, shown: GateImages, step: Callable[[], None]) -> np.ndarray:
    assert subject.manifest is not None
    side, classes = subject.timed_model, subject.manifest["classes"]
    session = load_runtime(side.runtime).open(Path(side.path), threads=side.threads, precision=side.precision)
    right = []
    for file, label in zip(shown.files, shown.labels, strict=True):
        try:
            image = runner.prepare(file, subject.manifest["preprocess"])
        except runner.Refused as reason:
            raise ToolchainError(str(reason)) from reason
        right.append(classes[int(session.run(image)[0].argmax())] == label)
        step()
    return np.array(right)


def adjust_for_several_recipes(gated: Sequence[GateResult]) -> list[GateResult]:
    """Failures that do not stand once it is counted how many models were looked at become "cannot tell"."""
    slower = statistics.holm_adjust([one.latency_test.p_value for one in gated])
    worse = statistics.holm_adjust([one.accuracy_p_value for one in gated])
    result = []
    for one, slow, bad in zip(gated, slower, worse, strict=True):
        doubted = {
            check: f"not certain among {len(gated)} models (Holm, p = {chance:.2g})"
            for check, chance, most in (
                ("latency_growth", slow, sequential_test.ERROR_LEVEL),
                ("accuracy_drop", bad, MAX_ACCURACY_P_VALUE),
            )
            if chance >= most
        }
        verdicts = tuple(
            replace(v, outcome="cannot_tell", why=f"{doubted[v.check]}; {v.why}")
            if v.outcome == "fail" and v.check in doubted
            else v
            for v in one.verdicts
        )
        told = next(v.outcome for v in verdicts if v.check == "latency_growth")
        result.append(replace(one, verdicts=verdicts, latency_test=replace(one.latency_test, outcome=told)))
    return result


def exit_status(gated: Sequence[GateResult]) -> int:
    """Exit status: 1 where anything fails, else 3 where anything could not be told, else 0."""
    outcomes = {verdict.outcome for one in gated for verdict in one.verdicts}
    return next((code for outcome, code in EXIT_STATUS.items() if outcome in outcomes), 0)
