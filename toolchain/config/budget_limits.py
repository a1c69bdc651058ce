"""Parse budget limits as users write them: "0.5x" of the dense model, "1.2 ms", "150M" multiply-accumulates."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from toolchain.config.recipe import Budget
from toolchain.core.errors import ToolchainError

Quantity = Literal["latency", "size", "macs", "parameters"]
UNITS: Mapping[Quantity, Mapping[str, float]] = {  # factors to milliseconds, bytes, multiply-accumulates and parameters
    "latency": {"s": 1e3, "ms": 1.0, "us": 1e-3, "µs": 1e-3},
    "size": {"B": 1.0, "kB": 1e3, "KiB": 1024.0, "MB": 1e6, "MiB": 1024.0**2},
    "macs": {"": 1.0, "k": 1e3, "M": 1e6, "G": 1e9},
    "parameters": {"": 1.0, "k": 1e3, "M": 1e6, "G": 1e9},
}
EXAMPLES: Mapping[Quantity, str] = {
    "latency": 'give "0.5x" (of the dense model, quantized as it would ship) or "1.2 ms"',
    "size": 'give "0.5x" (of the dense model, quantized as it would ship) or "1.2 MB"',
    "macs": 'give "0.5x" (of the dense model) or "150M"',
    "parameters": 'give "0.5x" (of the dense model) or "2.5M"',
}


@dataclass(frozen=True)
class BudgetLimit:
    """An upper limit, relative to the dense model or in milliseconds, bytes, multiply-accumulates or parameters."""

    value: float
    relative: bool  # `value` is a share of the dense model's

    def as_share_of(self, dense: float) -> float:
        """Return the limit as a share of the dense model's quantity, given in the limit's unit."""
        return self.value if self.relative else self.value / dense


def collect_limits(budget: Budget) -> dict[Quantity, str]:
    """Return the limits on latency, size, multiply-accumulates and parameters that a budget has, as text."""
    return {quantity: text for quantity in UNITS if (text := getattr(budget, quantity)) is not None}


def parse(quantity: Quantity, text: str) -> BudgetLimit:
    """Parse a limit.

    Args:
        quantity: what is limited, which decides the units that are accepted.
        text: such as "0.5x" or "1.2 ms".

    Raises:
        ToolchainError: the text is not a limit; the message says what is accepted.
    """
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([a-zA-Zµ]*)", text.strip())
    if match and match[2] == "x" and 0 < float(match[1]) <= 1:
        return BudgetLimit(float(match[1]), True)
    if match and match[2] in UNITS[quantity] and float(match[1]) > 0:
        return BudgetLimit(float(match[1]) * UNITS[quantity][match[2]], False)
    raise ToolchainError(f"budget.{quantity} = {text!r}: {EXAMPLES[quantity]}")
