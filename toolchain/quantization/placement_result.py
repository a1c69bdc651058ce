"""Placement result: carried out of a larger module; to be described."""

import math
from dataclasses import dataclass

from toolchain.core.types import Precision
from toolchain.quantization.placement import Placement


@dataclass(frozen=True, kw_only=True)
class TimedPlacement:
    """One candidate and how it compared with the fastest float form, in one process."""

    label: str
    placement: Placement
    precision: Precision
    speedup: float  # times as fast as the float model in f32
    latency_ms: float


CLEAR_LOG_GAIN = math.log(1.03)


@dataclass(frozen=True)
class PlacementResult:
    """The decision, with all that was timed."""

    placement: Placement
    key: str
    timed_placements: tuple[TimedPlacement, ...]
    search_seconds: float
    chosen_label: str = ""  # of the placement among `tried`; "" where nothing was timed
    measured_for: str = (
        ""  # the target that it was measured for, where this machine lacks the instructions of the own one
    )

    @property
    def fastest_int8(self) -> TimedPlacement | None:
        """The fastest integer form; None where nothing was timed."""
        return next(
            (one for one in self.timed_placements if self.chosen_label and one.label == self.chosen_label), None
        )

    @property
    def int8_speedup(self) -> float:
        """Of the fastest integer form over f32; 1 where nothing was timed."""
        return self.fastest_int8.speedup if self.fastest_int8 else 1.0

    def slowdown(self, block: str) -> float | None:
        """How many times slower one block in float was, where the search tried that."""
        single = next((one for one in self.timed_placements if one.label == f"{block} in float"), None)
        return self.int8_speedup / single.speedup if single and self.fastest_int8 else None

    @property
    def fastest_float(self) -> TimedPlacement | None:
        """The fastest float form."""
        floats = [one for one in self.timed_placements if one.precision != "int8"]
        return max(floats, key=lambda one: one.speedup, default=None)

    @property
    def float_wins(self) -> bool:
        """Whether a float form is clearly faster than all integer ones; a close call is left to the final timing."""
        best, other = self.fastest_int8, self.fastest_float
        return best is not None and other is not None and math.log(other.speedup / best.speedup) > CLEAR_LOG_GAIN
