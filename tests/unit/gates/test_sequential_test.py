"""Gating: decisions from rounds that are made up, so that what is right is known."""

import math
import random
from collections import Counter
from collections.abc import Callable, Sequence

import numpy as np
import pytest

from toolchain.core import statistics
from toolchain.gates import sequential_test
from toolchain.gates.sequential_test import Sample

THRESHOLD = 0.05
NOISE = 0.013  # standard deviation of a round on a busy machine


def noisy(slower: float, noise: float = NOISE, seed: int = 0, favour: float = 0.0) -> Callable[[int], list[Sample]]:
    random = np.random.default_rng(seed)
    return lambda count: [
        Sample(math.log1p(slower) + random.normal(0, noise), favour + random.normal(0, noise)) for _ in range(count)
    ]


def outcomes(slower: float, gates: int = 300, noise: float = NOISE) -> Counter[str]:
    return Counter(sequential_test.run_test(noisy(slower, noise, seed), THRESHOLD).outcome for seed in range(gates))


def test_equal_models_raise_no_alarm() -> None:
    assert outcomes(0.0)["fail"] == 0
    assert outcomes(0.0)["pass"] >= 297


def test_a_slowdown_of_the_threshold_is_caught() -> None:
    found = outcomes(0.05)
    assert found["pass"] == 0
    assert found["fail"] >= 295


def test_a_slowdown_of_three_fifths_of_it_is_mostly_caught() -> None:
    assert outcomes(0.03)["fail"] >= 225


def test_a_faster_model_passes() -> None:
    assert outcomes(-0.2, gates=50) == {"pass": 50}


def test_noise_that_hides_everything_is_no_pass_and_no_alarm() -> None:
    found = outcomes(0.0, gates=100, noise=0.3)
    assert found["fail"] <= 1
    assert found["cannot_tell"] >= 90


def test_undecided_rounds_are_followed_by_more_and_then_by_the_truth() -> None:
    asked: list[int] = []

    def draw(count: int) -> list[Sample]:
        asked.append(count)
        values = [0.03, 0.08] * count  # neither certainly below five percent nor certainly above none
        return [Sample(value - 0.025, 0.001 * (-1) ** i) for i, value in enumerate(values[:count])]

    found = sequential_test.run_test(draw, THRESHOLD)
    assert asked[0] == sequential_test.FIRST_ROUNDS
    assert len(asked) > 1
    assert sum(asked) <= sequential_test.MAX_ROUNDS + sequential_test.CONFIRMING_ROUNDS
    assert found.outcome in {"fail", "cannot_tell"}


def test_a_regression_is_called_one_only_when_further_rounds_say_so() -> None:
    calls: list[int] = []

    def fleeting(count: int) -> list[Sample]:
        calls.append(count)
        slower = 0.08 if len(calls) == 1 else 0.0
        return [Sample(slower + 0.001 * (-1) ** i, 0.001 * (-1) ** i) for i in range(count)]

    found = sequential_test.run_test(fleeting, THRESHOLD)
    assert found.outcome == "cannot_tell"
    assert "but 10 further ones do not confirm it" in found.why
    lasting = sequential_test.run_test(noisy(0.08, 0.001), THRESHOLD)
    assert lasting.outcome == "fail"
    assert lasting.candidate.rounds == sequential_test.FIRST_ROUNDS + sequential_test.CONFIRMING_ROUNDS
    assert f"confirmed by {sequential_test.CONFIRMING_ROUNDS} rounds" in lasting.why


def test_a_machine_that_turns_bad_while_it_confirms_decides_nothing() -> None:
    drawn: list[Sample] = []

    def turning(count: int) -> list[Sample]:
        favour = 0.06 if drawn else 0.0
        drawn.extend(Sample(0.06 + 0.001 * (-1) ** i, favour + 0.001 * (-1) ** i) for i in range(count))
        return drawn[-count:]

    found = sequential_test.run_test(turning, THRESHOLD)
    assert len(drawn) == sequential_test.FIRST_ROUNDS + sequential_test.CONFIRMING_ROUNDS
    assert (found.outcome, "against itself" in found.why) == ("cannot_tell", True)


@pytest.mark.parametrize("slower", [0.0, 0.08])
def test_a_machine_that_favours_one_of_two_equal_models_decides_nothing(slower: float) -> None:
    asked: list[int] = []
    draw = noisy(slower, 0.002, favour=0.04)
    found = sequential_test.run_test(lambda count: asked.append(count) or draw(count), THRESHOLD)
    assert found.outcome == "cannot_tell"
    assert "against itself differs by +4." in found.why
    assert asked == [sequential_test.FIRST_ROUNDS]  # nothing is gained by more of such rounds


def test_the_smallest_slowdown_that_is_named_is_found() -> None:
    def read(slower: float, seed: int) -> sequential_test.SlowdownEstimate:
        return sequential_test.estimate_slowdown(logs(slower, seed), THRESHOLD)

    def logs(slower: float, seed: int) -> list[float]:
        return [sample.candidate for sample in noisy(slower, seed=seed)(10)]

    named = float(np.mean([read(0.0, seed).detectable for seed in range(200)]))
    assert THRESHOLD / 2 < named < 0.06
    for slower, least, most in ((named, 0.9, 1.0), (named / 2, 0.0, 0.3)):
        found = np.mean([sequential_test.decide(logs(slower, seed), THRESHOLD) == "regression" for seed in range(200)])
        assert least <= found <= most


# --- the statistics below it --------------------------------------------------------------------------------


def test_the_trimmed_mean_has_yuens_error() -> None:
    values = [1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0, 9.0, 100.0]
    found = statistics.trimmed_mean(values)
    clipped = np.array([3, 3, 3, 4, 5, 6, 7, 8, 8, 8], float)
    assert found.estimate == pytest.approx(np.mean([3, 4, 5, 6, 7, 8]))
    assert found.standard_error == pytest.approx(clipped.std(ddof=1) * math.sqrt(9 / (6 * 5)))
    assert found.degrees_of_freedom == 5


def test_p_values_of_the_trimmed_mean_are_uniform_where_nothing_differs() -> None:
    random = np.random.default_rng(1)
    p = [statistics.trimmed_mean(random.normal(0, 1, 10)).p_greater(0.0) for _ in range(4000)]
    for level in (0.05, 0.5, 0.95):
        assert np.mean(np.array(p) < level) == pytest.approx(level, abs=0.03)
    assert statistics.trimmed_mean([0.01] * 5).p_greater(0.0) == 0.0
    assert statistics.trimmed_mean([0.0] * 5).p_greater(0.0) == 1.0


def test_mcnemars_exact_test_counts_only_pictures_that_changed_sides() -> None:
    reference = np.array([True] * 10 + [False] * 2 + [True] * 50)
    candidate = np.array([False] * 10 + [True] * 2 + [True] * 50)
    heads = sum(math.comb(12, k) for k in (10, 11, 12)) / 2**12
    assert statistics.mcnemar_p_value(reference, candidate) == pytest.approx(heads)
    assert statistics.mcnemar_p_value(reference, reference) == 1.0


def test_holm_steps_down() -> None:
    assert statistics.holm_adjust([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert statistics.holm_adjust([0.9, 0.8]) == pytest.approx([1.0, 1.0])
    random.seed(0)
    p: Sequence[float] = [random.random() for _ in range(9)]
    assert all(adjusted >= value for value, adjusted in zip(p, statistics.holm_adjust(p), strict=True))
