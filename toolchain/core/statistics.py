"""Percentiles, intervals and paired comparisons; pure functions of samples, no files, no clocks.

Accuracy: Wilson's interval; differences over the same images: Agresti and Min's adjusted Wald interval for matched
proportions (Statistics in Medicine 24, 2005), which stays honest where few images changed sides. Balanced accuracy:
the same per class, variances added. Latency ratios: 20 %-trimmed mean of round values with its t interval (Tukey
and McLaughlin 1963), since rounds are independent and single inferences are not.
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
DEFAULT_DISAGREEMENT = 0.05  # of two models of one family on one set, where it has not been measured
# MLPerf LoadGen's early stopping rule (confidence 0.99, no tolerance): fewest samples that can carry a percentile
MIN_SAMPLES_BY_PERCENTILE = {50: 11, 90: 64, 99: 662}


def accuracy(correct: np.ndarray) -> Interval:
    """Share of True in a bool array [images], with Wilson's interval."""
    hits, images = int(correct.sum()), len(correct)
    bounds = scipy_stats.binomtest(hits, images).proportion_ci(CONFIDENCE, method="wilson")
    return Interval(estimate=hits / images, low=float(bounds.low), high=float(bounds.high), samples=images)


def balanced_accuracy(correct: np.ndarray, labels: np.ndarray) -> Interval:
    """Mean over the classes present of the share of True among a class's images."""
    shares, variance = [], 0.0
    for label in np.unique(labels):
        own = correct[labels == label]
        adjusted = (own.sum() + 2) / (len(own) + 4)  # Agresti and Coull: a class with no error is not without doubt
        shares.append(own.mean())
        variance += adjusted * (1 - adjusted) / (len(own) + 4)
    return _normal(float(np.mean(shares)), math.sqrt(variance) / len(shares), len(correct), 0.0, 1.0)


def accuracy_drop(reference: np.ndarray, candidate: np.ndarray) -> Interval:
    """Accuracy lost from reference to candidate, both bool [images] over the same images; positive is worse."""
    estimate, centre, error = _matched(reference, candidate)
    reach = _z() * error
    low, high = max(-1.0, centre - reach), min(1.0, centre + reach)
    return Interval(estimate=estimate, low=min(low, estimate), high=max(high, estimate), samples=len(reference))


def balanced_drop(reference: np.ndarray, candidate: np.ndarray, labels: np.ndarray) -> Interval:
    """Balanced accuracy lost, paired over the same images."""
    parts = [_matched(reference[labels == label], candidate[labels == label]) for label in np.unique(labels)]
    estimate = float(np.mean([part[0] for part in parts]))
    error = math.sqrt(sum(part[2] ** 2 for part in parts)) / len(parts)
    return _normal(estimate, error, len(reference), -1.0, 1.0)


def minimum_detectable_difference(images: int, disagreement: float = DEFAULT_DISAGREEMENT) -> float:
    """Smallest accuracy difference that a test set can show: 95 % interval, found four times in five.

    Two models answer the same images, so only those on which exactly one of them is right tell anything (McNemar's
    test; its sample size: Connor, Biometrics 43, 1987).

    Args:
        images: how many the test set has.
        disagreement: share of images on which exactly one of the two models is right.
    """
    if images <= images_needed(1.0, 1.0):
        return 1.0
    return float(scipy_optimize.brentq(lambda d: images_needed(d, max(disagreement, d)) - images, 1e-6, 1.0, xtol=1e-7))


def images_needed(difference: float, disagreement: float = DEFAULT_DISAGREEMENT) -> int:
    """How many test images show an accuracy difference; the inverse of `smallest_difference`."""
    share = max(disagreement, difference)
    certain, found = _z(), float(scipy_stats.norm.ppf(POWER))
    root = certain * math.sqrt(share) + found * math.sqrt(max(share - difference**2, 0.0))
    return math.ceil((root / difference) ** 2)


def disagreement_share(reference: np.ndarray, candidate: np.ndarray) -> float:
    """Share of images on which exactly one of two models is right."""
    return float((reference != candidate).mean())


def mean_over_repeats(values: np.ndarray, labels: np.ndarray | None = None) -> Interval:
    """Mean of repeats (seeds, draws) over the same images, with the doubt that both bring.

    Args:
        values: [repeats, images], such as right or wrong, or the difference of two models.
        labels: [images]; given, every class counts the same.
    """
    lowest = -1.0 if values.min() < 0 else 0.0
    # made-up images, as Agresti and Coull (and Min, for differences) add them: where all agree is not without doubt
    added = np.array([-1.0, 1.0] if lowest else [0.0, 0.0, 1.0, 1.0])
    groups = [np.ones(values.shape[1], bool)] if labels is None else [labels == label for label in np.unique(labels)]
    each = np.mean([values[:, group].mean(1) for group in groups], axis=0)  # [repeats]
    means = [np.concatenate([values[:, group].mean(0), added]) for group in groups]
    images = float(sum(mean.var() / len(mean) for mean in means)) / len(groups) ** 2
    repeats = float(each.var(ddof=1)) / len(each) if len(each) > 1 else 0.0
    freedom = (images + repeats) ** 2 / (images**2 / values.shape[1] + repeats**2 / max(len(each) - 1, 1))  # Welch
    reach = float(scipy_stats.t.ppf((1 + CONFIDENCE) / 2, freedom)) * math.sqrt(images + repeats)
    middle = float(each.mean())
    return Interval(
        estimate=middle, low=max(lowest, middle - reach), high=min(1.0, middle + reach), samples=values.shape[1]
    )


def _matched(reference: np.ndarray, candidate: np.ndarray) -> tuple[float, float, float]:
    """Difference of matched proportions, its adjusted centre and standard error."""
    lost, won, images = int((reference & ~candidate).sum()), int((~reference & candidate).sum()), len(reference)
    centre = (lost - won) / (images + 2)
    variance = (lost + won + 1 - (lost - won) ** 2 / (images + 2)) / (images + 2) ** 2
    return (lost - won) / images, centre, math.sqrt(variance)


def _z() -> float:
    return float(scipy_stats.norm.ppf((1 + CONFIDENCE) / 2))


def _normal(estimate: float, error: float, samples: int, lowest: float, highest: float) -> Interval:
    reach = _z() * error
    return Interval(
        estimate=estimate, low=max(lowest, estimate - reach), high=min(highest, estimate + reach), samples=samples
    )


def percentile(samples_ms: Sequence[float], which: int) -> float | None:
    """The `which`-th percentile, or None where there are too few samples to carry it."""
    return float(np.percentile(samples_ms, which)) if len(samples_ms) >= MIN_SAMPLES_BY_PERCENTILE[which] else None


def log_speedup(base_blocks: Sequence[Sequence[float]], other_blocks: Sequence[Sequence[float]]) -> float:
    """Log of how many times faster `other` is in one round: median over blocks of ln(min base / min other)."""
    logs = [math.log(min(base) / min(other)) for base, other in zip(base_blocks, other_blocks, strict=True)]
    return float(np.median(logs))


def speedup(round_logs: Sequence[float]) -> Interval:
    """How many times faster, from the round values of `round_ratio`."""
    values = np.asarray(round_logs)
    if len(values) < 3:
        middle = float(np.exp(np.mean(values)))
        return Interval(estimate=middle, low=0.0, high=math.inf, samples=len(values))
    estimate = float(scipy_stats.trim_mean(values, TRIMMED_SHARE))
    low, high = mstats.trimmed_mean_ci(values, limits=(TRIMMED_SHARE, TRIMMED_SHARE), alpha=1 - CONFIDENCE)
    return Interval(estimate=math.exp(estimate), low=math.exp(low), high=math.exp(high), samples=len(values))


def timing_noise(round_logs: Sequence[float]) -> float:
    """Standard deviation of the round values, the machine's noise; a share."""
    return float(np.std(round_logs, ddof=1)) if len(round_logs) > 1 else 0.0


@dataclass(frozen=True)
class TrimmedMean:
    """20 %-trimmed mean of round values, its standard error and degrees of freedom (Yuen, Biometrika 61, 1974)."""

    estimate: float
    standard_error: float
    degrees_of_freedom: int

    def p_greater(self, value: float) -> float:
        """How likely round values this high are where the true one is `value`; one-sided."""
        return self._tail(self.estimate - value)

    def p_two_sided(self, value: float) -> float:
        """The same for values this far from it on either side."""
        return min(1.0, 2 * self._tail(abs(self.estimate - value)))

    def upper_bound(self, confidence: float) -> float:
        """What the true value is below with that confidence; one-sided."""
        return self.estimate + self.margin(confidence)

    def detectable_difference(self, chance: float, power: float) -> float:
        """The smallest difference that values with this noise find with that power, at that chance of a false alarm."""
        return self.margin(1 - chance) + self.margin(power)

    def margin(self, probability: float) -> float:
        """How far below the true value an estimate lies with no more than the rest of that probability."""
        return float(scipy_stats.t.ppf(probability, self.degrees_of_freedom)) * self.standard_error

    def _tail(self, distance: float) -> float:
        if self.standard_error == 0:
            return float(distance <= 0)
        return float(scipy_stats.t.sf(distance / self.standard_error, self.degrees_of_freedom))


def trimmed_mean(values: Sequence[float]) -> TrimmedMean:
    """The trimmed mean of at least three round values."""
    ordered = np.sort(np.asarray(values, float))
    cut = int(TRIMMED_SHARE * len(ordered))
    kept = len(ordered) - 2 * cut
    clipped = np.clip(ordered, ordered[cut], ordered[-1 - cut])  # winsorized
    squares = float(((clipped - clipped.mean()) ** 2).sum())
    return TrimmedMean(
        float(ordered[cut : len(ordered) - cut].mean()), math.sqrt(squares / (kept * (kept - 1))), kept - 1
    )


def mcnemar_p_value(reference: np.ndarray, candidate: np.ndarray) -> float:
    """How likely a loss of accuracy this large is where both are as good: McNemar's exact test, one-sided.

    Args:
        reference, candidate: bool [images] over the same images.
    """
    lost, won = int((reference & ~candidate).sum()), int((~reference & candidate).sum())
    return float(scipy_stats.binomtest(lost, lost + won, 0.5, alternative="greater").pvalue) if lost + won else 1.0


def holm_adjust(p_values: Sequence[float]) -> list[float]:
    """The same tests' p-values where any of them may be the one that errs (Holm, Scand. J. Statist. 6, 1979)."""
    adjusted, highest = [0.0] * len(p_values), 0.0
    for rank, index in enumerate(np.argsort(p_values, kind="stable")):
        highest = max(highest, min(1.0, (len(p_values) - rank) * p_values[index]))
        adjusted[int(index)] = highest
    return adjusted


def homogeneity_p_value(one: np.ndarray, other: np.ndarray) -> float:
    """Probability of two rows of counts [bins] differing so if one distribution made both: Pearson's chi-square.

    Bins that neither has anything in do not count; 1.0 where one bin is left.
    """
    used = (one + other) > 0
    first, second = one[used].astype(float), other[used].astype(float)
    if used.sum() < 2 or not first.sum() or not second.sum():
        return 1.0
    weight = math.sqrt(second.sum() / first.sum())
    chi_square = float((((weight * first) - second / weight) ** 2 / (first + second)).sum())
    return float(scipy_stats.chi2.sf(chi_square, int(used.sum()) - 1))
