"""Detect drift: compare what boards counted in the field, window by window, with the images that the model was tested on.

Each reading's histogram in a window is compared with that of the reference by Pearson's chi-square test for two samples,
with Bonferroni's correction over all windows and readings, so that the false-alarm rate of a whole check is 1 %. The
accuracy drop is estimated from confidence: the accuracy that reference images of the same confidence had. Where images
come from another distribution, this is a lower bound of the drop (Guillory et al., Predicting with Confidence on Unseen
Distributions, 2021).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from toolchain.core import statistics
from toolchain.core.errors import ToolchainError
from toolchain.core.types import Interval
from toolchain.deploy.drift_reference import DriftReference
from toolchain.edge import watch

DriftVerdict = Literal["fine", "recalibrate", "retrain", "cannot_tell"]
FALSE_ALARM_LEVEL = 0.01  # probability that anything is called although nothing has drifted
MIN_IMAGES = 100  # in a window; smaller windows are left out
FALSE_ALARM_DRAWS = 1000  # windows drawn from the reference, to estimate the false-alarm rate


@dataclass(frozen=True, kw_only=True)
class ReadingShift:
    """One reading of one window, compared with the reference."""

    reading: str
    p: float
    called: bool
    share: float  # probability that an image of the window reads higher than one of the reference; 0.5: no shift


@dataclass(frozen=True, kw_only=True)
class Window:
    """The result of one window: all its readings, compared with the reference."""

    source: str  # counters file
    number: int  # in its file, from 1, the oldest first
    pictures: int  # number of images
    moved: tuple[ReadingShift, ...]  # all readings, the smallest p-value first
    counts: Mapping[str, tuple[int, ...]]  # histogram by reading
    expected_drop: Interval  # accuracy drop, estimated from confidence

    @property
    def verdict(self) -> DriftVerdict:
        """Return this window's verdict. A different mix of classes alone is no drift: it may be the season."""
        called = {shift.reading for shift in self.moved if shift.called} - {"class"}
        if not called:
            return "fine"
        # a shift of confidence means that the predictions have changed, and its estimate of the drop is optimistic
        return "retrain" if "confidence" in called else "recalibrate"


@dataclass(frozen=True, kw_only=True)
class DriftResult:
    """All windows and the verdict."""

    bundle: str
    verdict: DriftVerdict
    why: str
    windows: tuple[Window, ...]
    left_out: int  # windows with too few images
    reference: int  # number of reference images
    false_alarms: Interval  # share of windows drawn from the reference that would have been called
    chance: float  # false-alarm level of the whole check


def detect(
    bundle: str, reference: DriftReference, classes: int, files: Mapping[str, Mapping[str, Any]], seed: int = 0
) -> DriftResult:
    """Compare every window of every counters file with the reference, and give a verdict.

    Args:
        bundle: its name, for the report.
        reference: the bundle's drift reference.
        classes: number of classes of the model.
        files: counters by file name, as `read_counters` returns them.
        seed: of the draws that estimate the false-alarm rate.
    """
    sizes = reference.count_bins(classes)
    counted = [
        (name, number, window) for name, content in files.items() for number, window in enumerate(content["windows"], 1)
    ]  # fmt: skip
    large = [entry for entry in counted if entry[2]["pictures"] >= MIN_IMAGES]
    level = FALSE_ALARM_LEVEL / (max(1, len(large)) * len(watch.READINGS))
    expected = reference.count_images(sizes)
    windows = tuple(
        _compare_window(
            name, number, {key: np.array(row) for key, row in window["counts"].items()}, expected, reference, level
        )
        for name, number, window in large
    )
    typical = int(np.median([window.pictures for window in windows])) if windows else watch.IMAGES_PER_WINDOW
    verdict, why = _decide(windows, reference)
    return DriftResult(
        bundle=bundle, verdict=verdict, why=why, windows=windows, left_out=len(counted) - len(large),
        reference=len(reference.correct), chance=FALSE_ALARM_LEVEL, false_alarms=estimate_false_alarms(reference, sizes, typical, level, seed),
    )  # fmt: skip


def _compare_window(
    source: str, number: int, counts: Mapping[str, np.ndarray], expected: Mapping[str, np.ndarray],
    reference: DriftReference, level: float,
) -> Window:  # fmt: skip
    """Test every reading of a window against the reference's histograms `expected`, each at significance `level`."""
    shifts = []
    for name, row in counts.items():
        p = statistics.homogeneity_p_value(row, expected[name])
        shifts.append(ReadingShift(reading=name, p=p, called=p < level, share=_rank_share(row, expected[name])))
    return Window(
        source=source, number=number, pictures=int(counts["class"].sum()),
        moved=tuple(sorted(shifts, key=lambda shift: shift.p)), counts={k: tuple(map(int, v)) for k, v in counts.items()},
        expected_drop=estimate_drop(counts["confidence"], reference),
    )  # fmt: skip


def _rank_share(row: np.ndarray, expected: np.ndarray) -> float:
    """Return the probability that an image of the window reads higher than one of the reference; ties count half."""
    below = np.cumsum(expected) - expected / 2
    return float((row * below).sum() / (row.sum() * expected.sum()))


def estimate_drop(counts: np.ndarray, reference: DriftReference) -> Interval:
    """Estimate a window's accuracy drop against the reference from its confidence.

    Args:
        counts: histogram of the confidence in the window, [bins].

    Returns:
        accuracy drop as a fraction, positive is worse, with its 95 % interval.
    """
    bins, correct = reference.bin_indices["confidence"], reference.correct
    images = np.bincount(bins, minlength=len(counts))
    hits = np.bincount(bins, weights=correct, minlength=len(counts))
    # reference accuracy of each bin; where the reference has no image, its overall accuracy
    accuracy = np.divide(hits, images, out=np.full(len(counts), correct.mean()), where=images > 0)
    total = counts.sum()
    expected = float((counts * accuracy).sum() / total)
    variance = max(float((counts * accuracy**2).sum() / total) - expected**2, 0)
    error = np.sqrt(variance / total + correct.var() / len(correct))
    drop = float(correct.mean()) - expected
    return Interval(estimate=drop, low=drop - 1.96 * float(error), high=drop + 1.96 * float(error), samples=int(total))


def estimate_false_alarms(
    reference: DriftReference, sizes: Mapping[str, int], images: int, level: float, seed: int
) -> Interval:
    """Estimate the false-alarm rate: draw windows from one half of the reference and compare them with the other half.

    Images are drawn without replacement, so a window is never larger than half of the reference.

    Args:
        sizes: number of bins by reading.
        images: size of a window.
        level: significance level of each test.

    Returns:
        share of drawn windows that are called although nothing has drifted; `samples` counts draws.
    """
    order, called = np.random.default_rng(seed), np.zeros(FALSE_ALARM_DRAWS, bool)
    for draw in range(FALSE_ALARM_DRAWS):
        shuffled = order.permutation(len(reference.correct))
        half = len(shuffled) // 2
        window, rest = shuffled[:half][:images], shuffled[half:]
        for name in watch.READINGS:
            rows = [np.bincount(reference.bin_indices[name][part], minlength=sizes[name]) for part in (window, rest)]
            if statistics.homogeneity_p_value(*rows) < level:
                called[draw] = True
                break
    return statistics.accuracy(called)


def _decide(windows: Sequence[Window], reference: DriftReference) -> tuple[DriftVerdict, str]:
    """Return the worst verdict of all windows and its reason in a sentence."""
    if not windows:
        return "cannot_tell", f"no window has {MIN_IMAGES} images yet; keep counting"
    verdicts = {window.verdict for window in windows}
    worst: DriftVerdict = next((verdict for verdict in ("retrain", "recalibrate") if verdict in verdicts), "fine")
    if worst == "fine":
        classes_shifted = any(shift.called for window in windows for shift in window.moved)
        return worst, "no significant drift" + (", except in the mix of classes" if classes_shifted else "")
    called = [window for window in windows if window.verdict != "fine"]
    readings = dict.fromkeys(
        shift.reading for window in called for shift in window.moved if shift.called and shift.reading != "class"
    )
    drop = estimate_drop(np.sum([window.counts["confidence"] for window in called], axis=0), reference)
    cost = "confidence shows no accuracy drop, but there may be one"
    if drop.low > 0:
        interval = f"[{100 * drop.low:.1f}, {100 * drop.high:.1f}]"
        cost = f"expected accuracy drop at least {100 * drop.estimate:.1f} points {interval}, estimated from confidence"
    return worst, f"{', '.join(readings)} shifted in {len(called)} of {len(windows)} windows; {cost}"


def read_counters(paths: Sequence[Path], bundle: str, sizes: Mapping[str, int]) -> dict[str, Mapping[str, Any]]:
    """Read the counters files of one or more boards.

    Args:
        bundle: identity of the bundle, which the files must name.
        sizes: number of bins by reading.

    Returns:
        counters by file name.

    Raises:
        ToolchainError: a file is truncated, damaged or of another bundle.
    """
    counters = {}
    for path in paths:
        try:
            counters[str(path)] = watch.read(path, bundle, sizes)
        except watch.CounterFileError as reason:
            raise ToolchainError(str(reason)) from reason
    return counters
