"""Check which accuracy differences the test split is large enough to detect, and whether the budget needs smaller ones."""

from collections.abc import Sequence

from toolchain.config.recipe import Budget
from toolchain.core import statistics
from toolchain.data.checks.finding import ClassCount, Finding
from toolchain.data.checks.wording import pluralize

LARGEST_BUDGET = 0.1  # an accuracy drop that may be proposed as a budget


def minimum_detectable_difference(counts: Sequence[ClassCount]) -> float | None:
    """Return the smallest accuracy difference that the test split shows with 80 % power; None without a test split."""
    test_images = _count_test_images(counts)
    return statistics.minimum_detectable_difference(test_images) if test_images else None


def check(counts: Sequence[ClassCount], budget: Budget | None) -> list[Finding]:
    """Report what the test split can detect, as a warning where the accuracy drop of the budget is smaller."""
    smallest = minimum_detectable_difference(counts)
    if smallest is None:
        return []
    power = (
        f"{pluralize(_count_test_images(counts), 'test image')} can show a difference of {100 * smallest:.2g} pt in "
        "accuracy (paired, 95 % confidence interval, 80 % power, for two models that disagree on "
        f"{statistics.DEFAULT_DISAGREEMENT:.0%} of the images)"
    )
    drop = budget.accuracy_drop if budget else None
    if not drop or drop >= smallest:
        return [Finding(severity="note", kind="test size", text=f"{power}. Smaller differences cannot be detected.")]
    needed = statistics.images_needed(drop, statistics.DEFAULT_DISAGREEMENT)
    text = (
        f"{power}. The budget allows an accuracy drop of {100 * drop:.2g} pt, which this test split cannot detect: use "
        f"about {needed:,} test images"
    )
    text += f", or a budget of {100 * smallest:.2g} pt." if smallest <= LARGEST_BUDGET else "."
    return [Finding(severity="warning", kind="test size", text=text)]


def _count_test_images(counts: Sequence[ClassCount]) -> int:
    return sum(count.pictures.get("test", 0) for count in counts)
