"""Figures are written one way everywhere, and never claim more than was measured."""

import pytest

from toolchain.report import number_format


@pytest.mark.parametrize(
    ("written", "expected"),
    [
        (number_format.milliseconds(0.5124), "0.512 ms"),
        (number_format.milliseconds(1234.5), "1230 ms"),
        (number_format.milliseconds(9.996), "10.0 ms"),
        (number_format.milliseconds(None), "–"),
        (number_format.steps(0.0000123), "< 0.01"),
        (number_format.steps(1.0), "1.00"),
        (number_format.byte_size(0), "0 B"),
        (number_format.byte_size(612), "612 B"),
        (number_format.byte_size(999_900), "1.00 MB"),
        (number_format.byte_size(4_470_000), "4.47 MB"),
        (number_format.byte_size(float("nan")), "–"),
        (number_format.percent(0), "0.0 %"),
        (number_format.percent(0.836), "83.6 %"),
        (number_format.percent(0.99999), "99.99 %"),
        (number_format.percent(1.0), "100 %"),
        (number_format.points(-0.0004), "0.0 pt"),
        (number_format.points(0.002), "+0.2 pt"),
        (number_format.drop_points(-0.002), "−0.2 pt"),
        (number_format.multiple(1.618), "1.62×"),
        (number_format.duration(0.44), "0.4 s"),
        (number_format.duration(59.7), "1 min 00 s"),
        (number_format.duration(3912), "1 h 05 min"),
        (number_format.verdict_value("speedup", 2.0, limit=True), "≥ 2.00×"),
        (number_format.verdict_value("accuracy_drop", 0.01, limit=True), "≤ 1.0 pt"),
        (number_format.verdict_value("accuracy_gap", 0.003, limit=True), "± 0.3 pt"),
        (number_format.verdict_value("integer_coverage", 1.0), "100 %"),
        (number_format.verdict_value("something", 12.345), "12.35"),
    ],
)
def test_figures_are_written_the_same_way_everywhere(written: str, expected: str) -> None:
    assert written == expected
