"""Percentiles, confidence intervals and paired comparisons: pure functions of samples, without files or clocks.

Accuracy: Wilson's interval. Differences over the same images: Agresti and Min's adjusted Wald interval for matched
proportions (Statistics in Medicine 24, 2005), which keeps its coverage when few images change between right and wrong.
Balanced accuracy: the same per class, variances added. Latency ratios: the 20 % trimmed mean of round values with its t
interval (Tukey and McLaughlin 1963), because rounds are independent and single inferences are not.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import optimize as scipy_optimize
from scipy import stats as scipy_stats
from scipy.stats import mstats

from toolchain.core.types import Interval

CONFIDENCE = 0.95
TRIMMED_SHARE = 0.2
POWER = 0.8
DEFAULT_DISAGREEMENT = 0.05  # typical of two variants of one model on one dataset; used where it was not measured
# MLPerf LoadGen's early stopping rule (confidence 0.99, no tolerance): fewest samples that support a percentile
MIN_SAMPLES_BY_PERCENTILE = {50: 11, 90: 64, 99: 662}


def accuracy(correct: np.ndarray) -> Interval:
    """Return the share of True in a bool array [images], with Wilson's interval."""
    return share(int(correct.sum()), len(correct))


def share(count: int, samples: int) -> Interval:
    """Return the share that `count` of `samples` are, with Wilson's interval."""
    bounds = scipy_stats.binomtest(count, samples).proportion_ci(CONFIDENCE, method="wilson")
    return Interval(estimate=count / samples, low=float(bounds.low), high=float(bounds.high), samples=samples)


def balanced_accuracy(correct: np.ndarray, labels: np.ndarray) -> Interval:
    """Return the mean accuracy of the classes present, every class weighted equally.

    Args:
        correct: bool [images].
        labels: [images].
    """
    accuracies, variance = [], 0.0
    for label in np.unique(labels):
        of_class = correct[labels == label]
        # Agresti and Coull: a class without errors still has a variance
        adjusted = (of_class.sum() + 2) / (len(of_class) + 4)
        accuracies.append(of_class.mean())
        variance += adjusted * (1 - adjusted) / (len(of_class) + 4)
    error = math.sqrt(variance) / len(accuracies)
    return _normal_interval(float(np.mean(accuracies)), error, len(correct), 0.0, 1.0)


def accuracy_drop(reference: np.ndarray, candidate: np.ndarray) -> Interval:
    """Return the accuracy drop from reference to candidate, both bool [images] over the same images; positive is worse."""
    estimate, centre, error = _matched_difference(reference, candidate)
    margin = _z() * error
    low, high = max(-1.0, centre - margin), min(1.0, centre + margin)
    return Interval(estimate=estimate, low=min(low, estimate), high=max(high, estimate), samples=len(reference))


def balanced_drop(reference: np.ndarray, candidate: np.ndarray, labels: np.ndarray) -> Interval:
    """Return the drop of balanced accuracy, paired over the same images; positive is worse.

    Args:
        reference, candidate: bool [images] over the same images.
        labels: [images].
    """
    differences = [
        _matched_difference(reference[labels == label], candidate[labels == label]) for label in np.unique(labels)
    ]
    estimate = float(np.mean([difference for difference, _, _ in differences]))
    error = math.sqrt(sum(class_error**2 for _, _, class_error in differences)) / len(differences)
    return _normal_interval(estimate, error, len(reference), -1.0, 1.0)


def root_mean_square(squares: np.ndarray) -> Interval:
    """Return the root of the mean of squares [images], with the normal interval of that mean; one image has no interval."""
    mean = float(squares.mean())
    margin = _z() * float(squares.std(ddof=1)) / math.sqrt(len(squares)) if len(squares) > 1 else 0.0
    low, high = math.sqrt(max(0.0, mean - margin)), math.sqrt(mean + margin)
    return Interval(estimate=math.sqrt(mean), low=low, high=high, samples=len(squares))


def minimum_detectable_difference(images: int, disagreement: float = DEFAULT_DISAGREEMENT) -> float:
    """Return the smallest accuracy difference that a test set detects with 95 % confidence and 80 % power.

    Two models are compared on the same images, so only images on which exactly one of them is right count (McNemar's
    test; its sample size: Connor, Biometrics 43, 1987).

    Args:
        images: size of the test set.
        disagreement: share of images on which exactly one of the two models is right.

    Returns:
        a fraction; 0.01 is one point.
    """
    if images <= images_needed(1.0, 1.0):
        return 1.0
    return float(scipy_optimize.brentq(lambda d: images_needed(d, max(disagreement, d)) - images, 1e-6, 1.0, xtol=1e-7))


def images_needed(difference: float, disagreement: float = DEFAULT_DISAGREEMENT) -> int:
    """Return how many test images detect an accuracy difference: the inverse of `minimum_detectable_difference`.

    Args:
        difference: a fraction; 0.01 is one point.
        disagreement: share of images on which exactly one of the two models is right.
    """
    share = max(disagreement, difference)
    z_confidence, z_power = _z(), float(scipy_stats.norm.ppf(POWER))
    root = z_confidence * math.sqrt(share) + z_power * math.sqrt(max(share - difference**2, 0.0))
    return math.ceil((root / difference) ** 2)


def images_for_share(share: float, limit: float) -> int:
    """Return how many images show that a share such as the observed one is below, or above, a limit (95 % confidence)."""
    distance = max(abs(limit - share), 1e-3)
    return math.ceil(_z() ** 2 * share * (1 - share) / distance**2)


def disagreement_share(reference: np.ndarray, candidate: np.ndarray) -> float:
    """Return the share of images on which exactly one of two models is right; both bool [images]."""
    return float((reference != candidate).mean())


def mean_over_repeats(values: np.ndarray, labels: np.ndarray | None = None) -> Interval:
    """Return the mean of repeats (seeds, draws) over the same images, with the variance of both in its interval.

    Args:
        values: [repeats, images], such as right or wrong, or the difference of two models.
        labels: [images]; if given, every class is weighted equally.
    """
    lowest = -1.0 if values.min() < 0 else 0.0
    # pseudo-observations, as Agresti and Coull (and Min, for differences) add them: without them the variance is zero
    # where all images agree
    added = np.array([-1.0, 1.0] if lowest else [0.0, 0.0, 1.0, 1.0])
    groups = [np.ones(values.shape[1], bool)] if labels is None else [labels == label for label in np.unique(labels)]
    by_repeat = np.mean([values[:, group].mean(1) for group in groups], axis=0)  # [repeats]
    by_image = [np.concatenate([values[:, group].mean(0), added]) for group in groups]
    image_variance = float(sum(means.var() / len(means) for means in by_image)) / len(groups) ** 2
    repeat_variance = float(by_repeat.var(ddof=1)) / len(by_repeat) if len(by_repeat) > 1 else 0.0
    variance = image_variance + repeat_variance
    # Welch and Satterthwaite
    freedom = variance**2 / (image_variance**2 / values.shape[1] + repeat_variance**2 / max(len(by_repeat) - 1, 1))
    margin = float(scipy_stats.t.ppf((1 + CONFIDENCE) / 2, freedom)) * math.sqrt(variance)
    mean = float(by_repeat.mean())
    return Interval(
        estimate=mean, low=max(lowest, mean - margin), high=min(1.0, mean + margin), samples=values.shape[1]
    )


def _matched_difference(reference: np.ndarray, candidate: np.ndarray) -> tuple[float, float, float]:
    """Return the difference of matched proportions, the adjusted centre of its interval, and its standard error."""
    lost, won, images = int((reference & ~candidate).sum()), int((~reference & candidate).sum()), len(reference)
    centre = (lost - won) / (images + 2)
    variance = (lost + won + 1 - (lost - won) ** 2 / (images + 2)) / (images + 2) ** 2
    return (lost - won) / images, centre, math.sqrt(variance)


def _z() -> float:
    """Return the two-sided normal quantile of CONFIDENCE."""
    return float(scipy_stats.norm.ppf((1 + CONFIDENCE) / 2))


def _normal_interval(estimate: float, error: float, samples: int, lowest: float, highest: float) -> Interval:
    margin = _z() * error
    return Interval(
        estimate=estimate, low=max(lowest, estimate - margin), high=min(highest, estimate + margin), samples=samples
    )


def percentile(samples_ms: Sequence[float], which: int) -> float | None:
    """Return the `which`-th percentile (50, 90 or 99), or None if there are too few samples to support it."""
    return float(np.percentile(samples_ms, which)) if len(samples_ms) >= MIN_SAMPLES_BY_PERCENTILE[which] else None


def log_speedup(base_blocks: Sequence[Sequence[float]], other_blocks: Sequence[Sequence[float]]) -> float:
    """Return the log of `other`'s speed-up in one round: the median over blocks of ln(min base / min other).

    Args:
        base_blocks, other_blocks: latencies [blocks][runs], in the same unit.
    """
    logs = [math.log(min(base) / min(other)) for base, other in zip(base_blocks, other_blocks, strict=True)]
    return float(np.median(logs))


def speedup(round_logs: Sequence[float]) -> Interval:
    """Return the speed-up over all rounds, from the round values of `log_speedup`; unbounded below three rounds."""
    values = np.asarray(round_logs)
    if len(values) < 3:
        mean = float(np.exp(np.mean(values)))
        return Interval(estimate=mean, low=0.0, high=math.inf, samples=len(values))
    estimate = float(scipy_stats.trim_mean(values, TRIMMED_SHARE))
    low, high = mstats.trimmed_mean_ci(values, limits=(TRIMMED_SHARE, TRIMMED_SHARE), alpha=1 - CONFIDENCE)
    return Interval(estimate=math.exp(estimate), low=math.exp(low), high=math.exp(high), samples=len(values))


def timing_noise(round_logs: Sequence[float]) -> float:
    """Return the standard deviation of the round values: the machine's noise, as a fraction of the latency."""
    return float(np.std(round_logs, ddof=1)) if len(round_logs) > 1 else 0.0


@dataclass(frozen=True)
class TrimmedMean:
    """20 %-trimmed mean of round values, its standard error and degrees of freedom (Yuen, Biometrika 61, 1974)."""

    estimate: float
    standard_error: float
    degrees_of_freedom: int

    def p_greater(self, value: float) -> float:
        """Return the p-value of the one-sided test that the true mean is greater than `value`."""
        return self._tail(self.estimate - value)

    def p_two_sided(self, value: float) -> float:
        """Return the p-value of the two-sided test that the true mean differs from `value`."""
        return min(1.0, 2 * self._tail(abs(self.estimate - value)))

    def upper_bound(self, confidence: float) -> float:
        """Return the one-sided upper confidence bound of the true mean."""
        return self.estimate + self.margin(confidence)

    def detectable_difference(self, chance: float, power: float) -> float:
        """Return the smallest difference that is detected with this power at a false-alarm rate of `chance`."""
        return self.margin(1 - chance) + self.margin(power)

    def margin(self, probability: float) -> float:
        """Return the t quantile of `probability` times the standard error: how far a bound lies from the estimate."""
        return float(scipy_stats.t.ppf(probability, self.degrees_of_freedom)) * self.standard_error

    def _tail(self, distance: float) -> float:
        if self.standard_error == 0:
            return float(distance <= 0)
        return float(scipy_stats.t.sf(distance / self.standard_error, self.degrees_of_freedom))


def trimmed_mean(values: Sequence[float]) -> TrimmedMean:
    """Return the trimmed mean of at least three round values."""
    ordered = np.sort(np.asarray(values, float))
    cut = int(TRIMMED_SHARE * len(ordered))
    kept = len(ordered) - 2 * cut
    winsorized = np.clip(ordered, ordered[cut], ordered[-1 - cut])
    squares = float(((winsorized - winsorized.mean()) ** 2).sum())
    return TrimmedMean(
        float(ordered[cut : len(ordered) - cut].mean()), math.sqrt(squares / (kept * (kept - 1))), kept - 1
    )


def mcnemar_p_value(reference: np.ndarray, candidate: np.ndarray) -> float:
    """Return the p-value of an accuracy drop: McNemar's exact test, one-sided, against equal accuracy.

    Args:
        reference, candidate: bool [images] over the same images.
    """
    lost, won = int((reference & ~candidate).sum()), int((~reference & candidate).sum())
    return float(scipy_stats.binomtest(lost, lost + won, 0.5, alternative="greater").pvalue) if lost + won else 1.0


def holm_adjust(p_values: Sequence[float]) -> list[float]:
    """Return p-values adjusted for multiple tests (Holm, Scand. J. Statist. 6, 1979), in the order given."""
    adjusted, highest = [0.0] * len(p_values), 0.0
    for rank, index in enumerate(np.argsort(p_values, kind="stable")):
        highest = max(highest, min(1.0, (len(p_values) - rank) * p_values[index]))
        adjusted[int(index)] = highest
    return adjusted


def homogeneity_p_value(histogram: np.ndarray, other: np.ndarray) -> float:
    """Return the p-value that two histograms [bins] come from one distribution: Pearson's chi-square test.

    Bins that are empty in both are left out; 1.0 if a single bin is left, or a histogram is empty.
    """
    used = (histogram + other) > 0
    first, second = histogram[used].astype(float), other[used].astype(float)
    if used.sum() < 2 or not first.sum() or not second.sum():
        return 1.0
    weight = math.sqrt(second.sum() / first.sum())
    chi_square = float((((weight * first) - second / weight) ** 2 / (first + second)).sum())
    return float(scipy_stats.chi2.sf(chi_square, int(used.sum()) - 1))
