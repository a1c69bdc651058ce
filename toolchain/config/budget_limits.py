"""Budgets as people write them: "0.5x" of the dense model, "1.2 ms", "150M" multiply-accumulates."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from toolchain.config.recipe import Budget
from toolchain.core.errors import ToolchainError

Quantity = Literal["latency", "size", "macs", "parameters"]
UNITS: Mapping[Quantity, Mapping[str, float]] = {  # to the unit that the project counts in
    "latency": {"s": 1e3, "ms": 1.0, "us": 1e-3, "µs": 1e-3},
    "size": {"B": 1.0, "kB": 1e3, "KiB": 1024.0, "MB": 1e6, "MiB": 1024.0**2},
    "macs": {"": 1.0, "k": 1e3, "M": 1e6, "G": 1e9},
    "parameters": {"": 1.0, "k": 1e3, "M": 1e6, "G": 1e9},
}
EXAMPLES: Mapping[Quantity, str] = {
    "latency": '"0.5x" of the dense model as it would ship, or "1.2 ms"',
    "size": '"0.5x" of the dense model as it would ship, or "1.2 MB"',
    "macs": '"0.5x" of the dense model, or "150M"',
    "parameters": '"0.5x" of the dense model, or "2.5M"',
}


@dataclass(frozen=True)
class BudgetLimit:
    """A limit: a share of the dense model's, or milliseconds, bytes, multiply-accumulates, parameters."""

    value: float
    relative: bool

    def as_share_of(self, whole: float) -> float:
        """The limit as a share of `whole`, which is in the amount's own unit."""
        return self.value if self.relative else self.value / whole


def collect_limits(budget: Budget) -> dict[Quantity, str]:
    """The limits of this kind that a budget has."""
    return {what: text for what in UNITS if (text := getattr(budget, what)) is not None}


def parse(what: Quantity, text: str) -> BudgetLimit:
    """An amount from its text.

    Raises:
        ToolchainError: it is none; says what is accepted.
    """
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([a-zA-Zµ]*)", text.strip())
    if match and match[2] == "x" and 0 < float(match[1]) <= 1:
        return BudgetLimit(float(match[1]), True)
    if match and match[2] in UNITS[what] and float(match[1]) > 0:
        return BudgetLimit(float(match[1]) * UNITS[what][match[2]], False)
    raise ToolchainError(f"budget.{what} = {text!r}: {EXAMPLES[what]}")
