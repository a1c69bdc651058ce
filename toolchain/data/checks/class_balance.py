"""Findings on numbers: how unevenly the classes are filled, and which claims the test split is large enough for."""

from collections import Counter
from collections.abc import Sequence

import numpy as np

from toolchain.config.recipe import Budget
from toolchain.core import statistics
from toolchain.data.checks.finding import ClassCount, Finding, Severity, join_first, pluralize
from toolchain.data.checks.folder_contents import ImageFile
from toolchain.data.splits import SPLITS

IMBALANCE_NOTE_RATIO = 3.0  # largest to smallest class: plain accuracy begins to be that of the large ones
IMBALANCE_WARNING_RATIO = 10.0
MIN_TEST_IMAGES_PER_CLASS = 10  # pictures of a class: with fewer, its recall is known to 26 points either way at best


def count_classes(entries: Sequence[ImageFile], labels: Sequence[str]) -> tuple[ClassCount, ...]:
    """Every class with its pictures by split."""
    found = Counter((entry.label, entry.split) for entry in entries)
    splits = [split for split in ("", *SPLITS) if any(entry.split == split for entry in entries)]
    return tuple(
        ClassCount(
            label=label,
            pictures={split: found[label, split] for split in splits},
            recall_reach=recall_half_width(found[label, "test"]),
        )
        for label in labels
    )


def recall_half_width(images: int) -> float | None:
    """Half the width of the 95 % interval on a share found among so many images, where it is widest: at one half."""
    if not images:
        return None
    half = statistics.accuracy(np.arange(images) < images / 2)
    return (half.high - half.low) / 2


def check(counts: Sequence[ClassCount], budget: Budget | None) -> list[Finding]:
    """All findings on numbers of pictures."""
    return [*_missing(counts), *_single(counts), *_uneven(counts), *_untested(counts), *_power(counts, budget)]


def _total(count: ClassCount) -> int:
    return sum(count.pictures.values())


def _missing(counts: Sequence[ClassCount]) -> list[Finding]:
    """Classes that a split lacks."""
    lacking = [f"{c.label} in {split}" for c in counts for split, n in c.pictures.items() if split and not n]
    text = f"There is no picture of {join_first(lacking, 6)}: add some, or leave the class out of all splits."
    return [Finding(severity="severe", kind="missing class", text=text)] if lacking else []


def _single(counts: Sequence[ClassCount]) -> list[Finding]:
    single = [c.label for c in counts if _total(c) == 1]
    text = (
        f"{pluralize(len(single), 'class', 'classes')} of a single picture ({join_first(single, 6)}): it can be trained on or "
        "tested on, not both; add pictures or merge the class with another."
    )
    return [Finding(severity="severe", kind="single picture", text=text)] if single else []


def _uneven(counts: Sequence[ClassCount]) -> list[Finding]:
    filled = [c for c in counts if _total(c)]
    if not filled:
        return []
    most, least = max(filled, key=_total), min(filled, key=_total)
    ratio = _total(most) / _total(least)
    if ratio < IMBALANCE_NOTE_RATIO:
        return []
    severity: Severity = "warning" if ratio >= IMBALANCE_WARNING_RATIO else "note"
    text = (
        f"Classes are uneven, {ratio:.3g} to 1: {_total(most):,} of {most.label}, {_total(least):,} of {least.label}. "
        "Plain accuracy is mostly that of the large ones: judge by balanced accuracy (balanced_drop in [budget], "
        "balance in the recipe)."
    )
    return [Finding(severity=severity, kind="imbalance", text=text)]


def _untested(counts: Sequence[ClassCount]) -> list[Finding]:
    """Classes whose own accuracy the test split cannot tell."""
    few = [(c, c.pictures.get("test", 0)) for c in counts if 0 < c.pictures.get("test", 0) < MIN_TEST_IMAGES_PER_CLASS]
    if not few:
        return []
    named = [f"{c.label} ({n}: ± {100 * (c.recall_reach or 0):.0f} points)" for c, n in few]
    text = (
        f"{pluralize(len(few), 'class', 'classes')} with fewer than {MIN_TEST_IMAGES_PER_CLASS} test pictures cannot carry a claim of "
        f"their own: {join_first(named, 6)}; add test pictures, or make no claim about them."
    )
    return [Finding(severity="warning", kind="small classes", text=text)]


def minimum_detectable_difference(counts: Sequence[ClassCount]) -> float | None:
    """Smallest difference of accuracy that the test split shows four times in five; None without one."""
    images = sum(c.pictures.get("test", 0) for c in counts)
    return statistics.minimum_detectable_difference(images) if images else None


def _power(counts: Sequence[ClassCount], budget: Budget | None) -> list[Finding]:
    """What the test split can show, against what the budget asks it to show."""
    smallest = minimum_detectable_difference(counts)
    if smallest is None:
        return []
    images = sum(c.pictures.get("test", 0) for c in counts)
    shows = (
        f"{pluralize(images, 'test picture')} can show a difference of {100 * smallest:.2g} points in accuracy (paired, 95 % "
        f"interval, 80 % power, where two models disagree on {statistics.DEFAULT_DISAGREEMENT:.0%} of them)"
    )
    limit = budget.accuracy_drop if budget else None
    if not limit or limit >= smallest:
        return [Finding(severity="note", kind="test size", text=f"{shows}; smaller ones go unseen.")]
    needed = statistics.images_needed(limit, statistics.DEFAULT_DISAGREEMENT)
    text = (
        f"{shows}. The budget allows a drop of {100 * limit:.2g} points, which this test set cannot show: it needs "
        f"about {needed:,} test pictures, or a budget of {100 * smallest:.2g} points."
    )
    return [Finding(severity="warning", kind="test size", text=text)]
