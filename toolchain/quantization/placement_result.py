"""The result of the placement search: the chosen placement, and the latency of every placement that was timed."""

import math
from dataclasses import dataclass

from toolchain.core.types import Precision
from toolchain.quantization.placement import Placement


@dataclass(frozen=True, kw_only=True)
class TimedPlacement:
    """One timed candidate, int8 or float, compared with the float32 model in the same process."""

    label: str
    placement: Placement
    precision: Precision
    speedup: float  # over the float32 model
    latency_ms: float


CLEAR_LOG_GAIN = math.log(1.03)  # log of the speed-up from which a float form is preferred to int8


@dataclass(frozen=True)
class PlacementResult:
    """The chosen placement, with everything that was timed."""

    placement: Placement
    key: str
    timed_placements: tuple[TimedPlacement, ...]
    search_seconds: float
    chosen_label: str = ""  # label of the placement among `timed_placements`; "" where nothing was timed
    measured_for: str = ""  # target it was timed for instead, where this machine lacks the job's target's instructions

    @property
    def fastest_int8(self) -> TimedPlacement | None:
        """The chosen int8 placement; None where nothing was timed."""
        if not self.chosen_label:
            return None
        return next((timed for timed in self.timed_placements if timed.label == self.chosen_label), None)

    @property
    def int8_speedup(self) -> float:
        """Speed-up of the chosen int8 placement over float32; 1 where nothing was timed."""
        return self.fastest_int8.speedup if self.fastest_int8 else 1.0

    def slowdown(self, block: str) -> float | None:
        """Return how many times slower the model is with one block in float; None where the search did not time it."""
        single = next((timed for timed in self.timed_placements if timed.label == f"{block} in float"), None)
        return self.int8_speedup / single.speedup if single and self.fastest_int8 else None

    @property
    def fastest_float(self) -> TimedPlacement | None:
        """The fastest float form; None where none was timed."""
        floats = [timed for timed in self.timed_placements if timed.precision != "int8"]
        return max(floats, key=lambda timed: timed.speedup, default=None)

    @property
    def float_wins(self) -> bool:
        """Whether a float form is clearly faster than every int8 one; the final timing decides close cases."""
        int8, float_form = self.fastest_int8, self.fastest_float
        return (
            int8 is not None and float_form is not None and math.log(float_form.speedup / int8.speedup) > CLEAR_LOG_GAIN
        )
