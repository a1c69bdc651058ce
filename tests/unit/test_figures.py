"""Figures are written one way everywhere, and never claim more than was measured."""

import pytest

from toolchain import figures


@pytest.mark.parametrize(
    ("written", "expected"),
    [
        (figures.milliseconds(0.5124), "0.512 ms"),
        (figures.milliseconds(1234.5), "1230 ms"),
        (figures.milliseconds(9.996), "10.0 ms"),
        (figures.milliseconds(None), "–"),
        (figures.steps(0.0000123), "< 0.01"),
        (figures.steps(1.0), "1.00"),
        (figures.size(0), "0 B"),
        (figures.size(612), "612 B"),
        (figures.size(999_900), "1.00 MB"),
        (figures.size(4_470_000), "4.47 MB"),
        (figures.size(float("nan")), "–"),
        (figures.percent(0), "0.0 %"),
        (figures.percent(0.836), "83.6 %"),
        (figures.percent(0.99999), "99.99 %"),
        (figures.percent(1.0), "100 %"),
        (figures.points(-0.0004), "0.0 pt"),
        (figures.points(0.002), "+0.2 pt"),
        (figures.lost(-0.002), "−0.2 pt"),
        (figures.times(1.618), "1.62×"),
        (figures.duration(0.44), "0.4 s"),
        (figures.duration(59.7), "1 min 00 s"),
        (figures.duration(3912), "1 h 05 min"),
        (figures.checked("speedup", 2.0, limit=True), "≥ 2.00×"),
        (figures.checked("accuracy_drop", 0.01, limit=True), "≤ 1.0 pt"),
        (figures.checked("accuracy_gap", 0.003, limit=True), "± 0.3 pt"),
        (figures.checked("integer_coverage", 1.0), "100 %"),
        (figures.checked("something", 12.345), "12.35"),
    ],
)
def test_figures_are_written_the_same_way_everywhere(written: str, expected: str) -> None:
    assert written == expected
