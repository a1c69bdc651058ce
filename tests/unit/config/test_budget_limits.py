"""Budgets as people write them."""

import pytest

from toolchain.config import budget_limits
from toolchain.core.errors import ToolchainError


@pytest.mark.parametrize(
    ("what", "text", "whole", "share"),
    [
        ("latency", "0.5x", 8.0, 0.5), ("latency", "1.2 ms", 2.4, 0.5), ("latency", "600us", 2.4, 0.25),
        ("macs", "150M", 300e6, 0.5), ("macs", "0.3x", 300e6, 0.3), ("parameters", "1.5 M", 3e6, 0.5),
    ],
)  # fmt: skip
def test_an_amount_is_a_share_of_the_whole(what: budget_limits.Quantity, text: str, whole: float, share: float) -> None:
    assert budget_limits.parse(what, text).as_share_of(whole) == pytest.approx(share)


@pytest.mark.parametrize("text", ["", "fast", "0x", "2x", "-1 ms", "0.5", "1 MB", "0.5 x x", "1e3 ms"])
def test_what_is_no_latency_is_refused_with_what_is_one(text: str) -> None:
    with pytest.raises(
        ToolchainError,
        match=r'budget\.latency = .*give "0\.5x" \(of the dense model, quantized as it would ship\) or "1\.2 ms"',
    ):
        budget_limits.parse("latency", text)
