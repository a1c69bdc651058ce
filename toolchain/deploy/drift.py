"""Has the world moved away from the pictures that a model was tested on? From a bundle's counters, window by window.

A window's counts of every reading are compared with those of the reference (Pearson's chi-square for two samples,
Bonferroni over all that is compared, so that a call is by chance in one of a hundred). What a change costs is estimated
from the confidence: the share of right answers that pictures of such confidence had on the reference; after Guillory et
al., Predicting with Confidence on Unseen Distributions, 2021, it is a lower bound where the pictures are of another world.
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
FALSE_ALARM_LEVEL = 0.01  # that anything is called where nothing moved
MIN_IMAGES = 100  # pictures in a window that is judged
FALSE_ALARM_DRAWS = 1000  # windows drawn from the reference, to count false alarms


@dataclass(frozen=True, kw_only=True)
class ReadingShift:
    """One reading of one window against the reference."""

    reading: str
    p: float
    called: bool
    share: float  # of the reference's pictures below the window's typical one; 0.5: nothing moved


@dataclass(frozen=True, kw_only=True)
class Window:
    """Pictures that were counted together."""

    source: str  # of the counters
    number: int  # in its file, the oldest first
    pictures: int
    moved: tuple[ReadingShift, ...]
    counts: Mapping[str, tuple[int, ...]]
    expected_drop: Interval  # of the accuracy, by confidence

    @property
    def verdict(self) -> DriftVerdict:
        """What this window alone says. Another mix of classes alone is no call: it may be the season."""
        moved = {one.reading for one in self.moved if one.called} - {"class"}
        if not moved:
            return "fine"
        # where its confidence has moved, its answers have; by how much they are worse, confidence tells too kindly
        return "retrain" if "confidence" in moved else "recalibrate"


@dataclass(frozen=True, kw_only=True)
class DriftResult:
    """All windows, and what follows."""

    bundle: str
    verdict: DriftVerdict
    why: str
    windows: tuple[Window, ...]
    left_out: int  # windows with too few pictures
    reference: int  # pictures
    false_alarms: Interval  # share of windows drawn from the reference that would have been called
    chance: float


def detect(
    bundle: str, reference: DriftReference, classes: int, files: Mapping[str, Mapping[str, Any]], seed: int = 0
) -> DriftResult:
    """Judges counters.

    Args:
        bundle: its name.
        classes: how many the model knows.
        files: what `watch.read` gave, by name.
    """
    sizes = reference.count_bins(classes)
    found = [
        (name, number, window) for name, own in files.items() for number, window in enumerate(own["windows"], 1)
    ]  # fmt: skip
    judged = [entry for entry in found if entry[2]["pictures"] >= MIN_IMAGES]
    level = FALSE_ALARM_LEVEL / (max(1, len(judged)) * len(watch.READINGS))
    whole = reference.count_images(sizes)
    windows = tuple(
        _window(name, number, {key: np.array(row) for key, row in window["counts"].items()}, whole, reference, level)
        for name, number, window in judged
    )
    typical = int(np.median([window.pictures for window in windows])) if windows else watch.IMAGES_PER_WINDOW
    verdict, why = _verdict(windows, reference)
    return DriftResult(
        bundle=bundle, verdict=verdict, why=why, windows=windows, left_out=len(found) - len(judged),
        reference=len(reference.correct), chance=FALSE_ALARM_LEVEL, false_alarms=estimate_false_alarms(reference, sizes, typical, level, seed),
    )  # fmt: skip


def _window(
    source: str, number: int, counts: Mapping[str, np.ndarray], whole: Mapping[str, np.ndarray],
    reference: DriftReference, level: float,
) -> Window:  # fmt: skip
    moved = []
    for name, row in counts.items():
        p = statistics.homogeneity_p_value(row, whole[name])
        moved.append(ReadingShift(reading=name, p=p, called=p < level, share=_position(row, whole[name])))
    return Window(
        source=source, number=number, pictures=int(counts["class"].sum()),
        moved=tuple(sorted(moved, key=lambda one: one.p)), counts={k: tuple(map(int, v)) for k, v in counts.items()},
        expected_drop=estimate_drop(counts["confidence"], reference),
    )  # fmt: skip


def _position(row: np.ndarray, whole: np.ndarray) -> float:
    """Chance that a picture of the window reads higher than one of the reference; ties count half."""
    below = np.cumsum(whole) - whole / 2
    return float((row * below).sum() / (row.sum() * whole.sum()))


def estimate_drop(counts: np.ndarray, reference: DriftReference) -> Interval:
    """Accuracy lost against the reference, as far as the confidence tells; counts [bins] of a window."""
    bins, right = reference.bin_indices["confidence"], reference.correct
    pictures = np.bincount(bins, minlength=len(counts))
    rights = np.bincount(bins, weights=right, minlength=len(counts))
    share = np.divide(rights, pictures, out=np.full(len(counts), right.mean()), where=pictures > 0)
    total = counts.sum()
    now = float((counts * share).sum() / total)
    error = np.sqrt(max(float((counts * share**2).sum() / total) - now**2, 0) / total + right.var() / len(right))
    drop = float(right.mean()) - now
    return Interval(estimate=drop, low=drop - 1.96 * float(error), high=drop + 1.96 * float(error), samples=int(total))


def estimate_false_alarms(
    reference: DriftReference, sizes: Mapping[str, int], pictures: int, level: float, seed: int
) -> Interval:
    """Share of windows that would be called although nothing moved: drawn from one half, compared with the other.

    A picture is drawn once: where windows are larger than half of the reference, they are that half (`samples` counts draws).
    """
    order, called = np.random.default_rng(seed), np.zeros(FALSE_ALARM_DRAWS, bool)
    for draw in range(FALSE_ALARM_DRAWS):
        mixed = order.permutation(len(reference.correct))
        half = len(mixed) // 2
        window, rest = mixed[:half], mixed[half:]
        chosen = window[:pictures]
        for name in watch.READINGS:
            rows = [np.bincount(reference.bin_indices[name][part], minlength=sizes[name]) for part in (chosen, rest)]
            if statistics.homogeneity_p_value(*rows) < level:
                called[draw] = True
                break
    return statistics.accuracy(called)


def _verdict(windows: Sequence[Window], reference: DriftReference) -> tuple[DriftVerdict, str]:
    if not windows:
        return "cannot_tell", f"no window has {MIN_IMAGES} pictures yet; watch on"
    worst: DriftVerdict = next(
        (v for v in ("retrain", "recalibrate") if any(one.verdict == v for one in windows)), "fine"
    )
    called = [one for one in windows if one.verdict != "fine"]
    if worst == "fine":
        mixes = any(moved.called for one in windows for moved in one.moved)
        return worst, "nothing moved beyond chance" + (", but for the mix of classes" if mixes else "")
    names = dict.fromkeys(m.reading for one in called for m in one.moved if m.called and m.reading != "class")
    drop = estimate_drop(np.sum([one.counts["confidence"] for one in called], axis=0), reference)
    lost = "its confidence tells of no loss, which it may well not see"
    if drop.low > 0:
        lost = f"its confidence tells of {100 * drop.estimate:.1f} points lost [{100 * drop.low:.1f}, {100 * drop.high:.1f}], "
        lost += "the least that it can be"
    return worst, f"{', '.join(names)} moved in {len(called)} of {len(windows)} windows; {lost}"


def read_counters(paths: Sequence[Path], bundle: str, sizes: Mapping[str, int]) -> dict[str, Mapping[str, Any]]:
    """What several boards counted, by file.

    Raises:
        ToolchainError: a file is cut, damaged or another bundle's.
    """
    found = {}
    for path in paths:
        try:
            found[str(path)] = watch.read(path, bundle, sizes)
        except watch.CounterFileError as reason:
            raise ToolchainError(str(reason)) from reason
    return found
