"""Intervals keep their promised coverage, percentiles their samples, and ratios the rounds."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from toolchain.core import statistics


def coverage(share: float, images: int, seed: int = 0) -> float:
    random = np.random.default_rng(seed)
    hits = 0
    for _ in range(400):
        found = statistics.accuracy(random.random(images) < share)
        hits += found.low <= share <= found.high
    return hits / 400


@pytest.mark.parametrize(("share", "images"), [(0.5, 100), (0.83, 165), (0.97, 450)])
def test_accuracy_intervals_hold_the_truth_as_often_as_they_say(share: float, images: int) -> None:
    assert 0.92 <= coverage(share, images) <= 0.985


@pytest.mark.parametrize("images", [165, 1000])
def test_paired_drop_intervals_hold_the_truth(images: int) -> None:
    random, hits = np.random.default_rng(1), 0
    for _ in range(400):
        reference = random.random(images) < 0.85
        candidate = np.where(random.random(images) < 0.05, ~reference, reference)
        truth = 0.05 * (0.85 - 0.15)
        found = statistics.accuracy_drop(reference, candidate)
        hits += found.low <= truth <= found.high
    assert 0.92 <= hits / 400 <= 0.985


def test_no_difference_on_few_images_is_not_certainty() -> None:
    same = np.ones(50, bool)
    found = statistics.accuracy_drop(same, same)
    assert found.estimate == 0
    assert found.low < -0.01
    assert found.high > 0.01


def test_balanced_accuracy_counts_classes_not_images() -> None:
    labels = np.array([0] * 90 + [1] * 10)
    correct = labels == 0
    assert statistics.balanced_accuracy(correct, labels).estimate == 0.5
    assert statistics.balanced_drop(np.ones(100, bool), correct, labels).estimate == 0.5


def test_percentiles_need_their_samples() -> None:
    assert statistics.percentile([1.0] * 63, 90) is None
    assert statistics.percentile([1.0] * 64, 90) == 1.0
    assert statistics.percentile([1.0] * 661, 99) is None


@given(st.floats(0.2, 5.0), st.integers(0, 1000))
def test_a_scaled_side_is_found_to_be_scaled(factor: float, seed: int) -> None:
    random = np.random.default_rng(seed)
    base = random.lognormal(0, 0.3, (7, 5)).tolist()
    other = [[sample / factor for sample in block] for block in base]
    assert math.exp(statistics.log_speedup(base, other)) == pytest.approx(factor)


def test_speedup_survives_one_disturbed_round() -> None:
    rounds = [0.37, 0.38, 0.385, 0.39, 0.4, 0.405, 0.41, 0.42, 0.43]
    quiet, disturbed = statistics.speedup([*rounds, 0.4]), statistics.speedup([*rounds, 3.0])
    assert disturbed.estimate == pytest.approx(quiet.estimate, rel=0.01)
    assert quiet.low < math.exp(0.4) < quiet.high


def test_a_test_set_shows_the_difference_it_promises_four_times_in_five() -> None:
    random, images, disagreement = np.random.default_rng(0), 500, 0.06
    difference = statistics.minimum_detectable_difference(images, disagreement)
    lost, won = (disagreement + difference) / 2, (disagreement - difference) / 2
    found = 0
    for _ in range(1500):
        sides = random.choice(3, images, p=[lost, won, 1 - lost - won])
        interval = statistics.accuracy_drop(
            sides != 1, sides != 0
        )  # 0: only the reference is right, 1: only the candidate
        found += interval.low > 0
    assert found / 1500 == pytest.approx(statistics.POWER, abs=0.05)


@pytest.mark.parametrize("difference", [0.005, 0.01, 0.05, 0.2])
def test_images_needed_is_the_inverse(difference: float) -> None:
    needed = statistics.images_needed(difference, 0.08)
    assert statistics.minimum_detectable_difference(needed, 0.08) == pytest.approx(difference, rel=0.02)
    assert statistics.images_needed(difference / 2, 0.08) > 2 * needed


def test_means_over_repeats_hold_the_truth() -> None:
    """Seeds differ in skill and pictures in difficulty; the interval must contain the mean over both."""
    random, hits = np.random.default_rng(3), 0
    for _ in range(400):
        hard = random.beta(4, 1, 200)
        seeds = [random.random(200) < np.clip(hard + random.normal(0, 0.03), 0, 1) for _ in range(4)]
        found = statistics.mean_over_repeats(np.stack(seeds))
        hits += found.low <= 0.8 <= found.high
    assert hits / 400 > 0.9
    labels = np.array([0] * 90 + [1] * 10)
    assert statistics.mean_over_repeats(np.stack([labels == 0]), labels).estimate == 0.5


@pytest.mark.parametrize("images", [1, 2, 3, 4, 5])
def test_a_handful_of_images_shows_next_to_nothing(images: int) -> None:
    assert 0.9 < statistics.minimum_detectable_difference(images) <= 1.0


def test_repeats_that_all_agree_are_not_without_doubt() -> None:
    found = statistics.mean_over_repeats(np.ones((3, 6), bool))
    assert found.estimate == found.high == 1.0
    assert found.low < 0.85
    assert statistics.mean_over_repeats(np.array([[1.0] + [0.0] * 7])).low == 0.0


def test_the_interval_of_a_share_is_wilsons() -> None:
    interval = statistics.share(8, 10)
    assert (interval.estimate, interval.samples) == (0.8, 10)
    assert (interval.low, interval.high) == (pytest.approx(0.4902, abs=1e-4), pytest.approx(0.9433, abs=1e-4))
    assert statistics.accuracy(np.arange(10) < 8) == interval
