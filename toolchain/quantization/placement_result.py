"""Placement result: carried out of a larger module; to be described."""

import math
from dataclasses import dataclass

from toolchain.core.types import Precision
from toolchain.quantization.placement import Placement


@dataclass(frozen=True, kw_only=True)
class Tried:
    """One candidate and how it compared with the fastest float form, in one process."""

    label: str
    placement: Placement
    precision: Precision
    speedup: float  # times as fast as the float model in f32
    latency_ms: float


CLEARLY = math.log(1.03)


@dataclass(frozen=True)
class Placed:
    """The decision, with all that was timed."""

    placement: Placement
    key: str
    tried: tuple[Tried, ...]
    seconds: float
    best_label: str = ""  # of the placement among `tried`; "" where nothing was timed
    borrowed: str = ""  # the target that it was measured for, where this machine lacks the instructions of the own one

    @property
    def best(self) -> Tried | None:
        """The fastest integer form; None where nothing was timed."""
        return next((one for one in self.tried if self.best_label and one.label == self.best_label), None)

    @property
    def best_speedup(self) -> float:
        """Of the fastest integer form over f32; 1 where nothing was timed."""
        return self.best.speedup if self.best else 1.0

    def slowdown(self, block: str) -> float | None:
        """How many times slower one block in float was, where the search tried that."""
        single = next((one for one in self.tried if one.label == f"{block} in float"), None)
        return self.best_speedup / single.speedup if single and self.best else None

    @property
    def fastest_float(self) -> Tried | None:
        """The fastest float form."""
        floats = [one for one in self.tried if one.precision != "int8"]
        return max(floats, key=lambda one: one.speedup, default=None)

    @property
    def float_wins(self) -> bool:
        """Whether a float form is clearly faster than all integer ones; a close call is left to the final timing."""
        best, other = self.best, self.fastest_float
        return best is not None and other is not None and math.log(other.speedup / best.speedup) > CLEARLY
