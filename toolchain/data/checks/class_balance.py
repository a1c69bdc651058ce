"""Check how the images are spread over the classes: missing, tiny and imbalanced classes, and how well recall is known."""

import math
from collections import Counter
from collections.abc import Sequence

from toolchain.core import statistics
from toolchain.data.checks.finding import ClassCount, Finding, Severity
from toolchain.data.checks.folder_contents import ImageFile
from toolchain.data.checks.wording import join_first, pluralize
from toolchain.data.splits import SPLITS

IMBALANCE_NOTE_RATIO = 3.0  # largest to smallest class: from here on, accuracy is mostly that of the large classes
IMBALANCE_WARNING_RATIO = 10.0
MIN_TEST_IMAGES_PER_CLASS = 10  # with fewer, the recall of a class is known to ± 26 points at best
MAX_NAMED_CLASSES = 6  # classes named in a sentence


def count_classes(files: Sequence[ImageFile], labels: Sequence[str]) -> tuple[ClassCount, ...]:
    """Count the images of every class by split."""
    counts = Counter((file.label, file.split) for file in files)
    splits = [split for split in ("", *SPLITS) if any(file.split == split for file in files)]
    return tuple(
        ClassCount(
            label=label,
            pictures={split: counts[label, split] for split in splits},
            recall_reach=recall_half_width(counts[label, "test"]),
        )
        for label in labels
    )


def recall_half_width(images: int) -> float | None:
    """Return half the width of the 95 % interval of a share measured on so many images, at its widest (one half)."""
    if not images:
        return None
    interval = statistics.share(math.ceil(images / 2), images)
    return (interval.high - interval.low) / 2


def check(counts: Sequence[ClassCount]) -> list[Finding]:
    """Return all findings about the numbers of images per class."""
    return [*_check_missing(counts), *_check_single(counts), *_check_imbalance(counts), *_check_test_images(counts)]


def _total(count: ClassCount) -> int:
    return sum(count.pictures.values())


def _check_missing(counts: Sequence[ClassCount]) -> list[Finding]:
    """Report classes that a split does not have."""
    missing = [f"{c.label} in {split}" for c in counts for split, n in c.pictures.items() if split and not n]
    text = f"There are no images of {join_first(missing, MAX_NAMED_CLASSES)}: add some, or remove the class from all splits."
    return [Finding(severity="severe", kind="missing class", text=text)] if missing else []


def _check_single(counts: Sequence[ClassCount]) -> list[Finding]:
    """Report classes with one image."""
    single = [c.label for c in counts if _total(c) == 1]
    text = (
        f"{pluralize(len(single), 'class', 'classes')} with a single image ({join_first(single, MAX_NAMED_CLASSES)}): it can "
        "be used for training or for testing, not for both. Add images, or merge the class with another."
    )
    return [Finding(severity="severe", kind="single picture", text=text)] if single else []


def _check_imbalance(counts: Sequence[ClassCount]) -> list[Finding]:
    """Report how many times as large as the smallest class the largest is."""
    nonempty = [c for c in counts if _total(c)]
    if not nonempty:
        return []
    largest, smallest = max(nonempty, key=_total), min(nonempty, key=_total)
    ratio = _total(largest) / _total(smallest)
    if ratio < IMBALANCE_NOTE_RATIO:
        return []
    severity: Severity = "warning" if ratio >= IMBALANCE_WARNING_RATIO else "note"
    text = (
        f"The classes are imbalanced, {ratio:.3g} to 1: {pluralize(_total(largest))} of {largest.label}, "
        f"{_total(smallest):,} of {smallest.label}. Plain accuracy is mostly that of the large classes: use balanced "
        "accuracy (balanced_drop in [budget], balance in the recipe)."
    )
    return [Finding(severity=severity, kind="imbalance", text=text)]


def _check_test_images(counts: Sequence[ClassCount]) -> list[Finding]:
    """Report classes with too few test images to measure their recall."""
    few = [(c, c.pictures.get("test", 0)) for c in counts if 0 < c.pictures.get("test", 0) < MIN_TEST_IMAGES_PER_CLASS]
    if not few:
        return []
    named = [f"{c.label} ({n}, recall ± {100 * (c.recall_reach or 0):.0f} pt)" for c, n in few]
    text = (
        f"{pluralize(len(few), 'class', 'classes')} with fewer than {MIN_TEST_IMAGES_PER_CLASS} test images, too few to "
        f"measure recall: {join_first(named, MAX_NAMED_CLASSES)}. Add test images, or make no claim about these classes."
    )
    return [Finding(severity="warning", kind="small classes", text=text)]
