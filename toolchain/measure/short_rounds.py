"""Short rounds of timing for searches: enough to choose among many candidates, kept so that a killed run goes on."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from toolchain.core import files
from toolchain.edge.timing_process import TimingEffort
from toolchain.measure import paired_timing

SHORT_EFFORT = TimingEffort(seconds=2.5, warmup_runs=4, fewest_blocks=7, most_seconds=10.0, slow_seconds=0.1)
FILE_NAME = "batches.json"


class ShortRounds:
    """Rounds in the order in which a search asks for them."""

    def __init__(self, folder: Path) -> None:
        self.path, self.round_number = folder / FILE_NAME, 0
        self.finished_rounds: list[dict[str, Any]] = files.read_json(self.path) if self.path.exists() else []

    def measure(self, sides: Sequence[paired_timing.TimedModel]) -> Mapping[str, Any]:
        """Samples of one process by side, or what an earlier run measured for the same sides at this point."""
        names, self.round_number = sorted(side.name for side in sides), self.round_number + 1
        done = self.finished_rounds[self.round_number - 1] if self.round_number <= len(self.finished_rounds) else None
        if done is not None and sorted(done["blocks"]) == names:
            return dict(done["blocks"])
        del self.finished_rounds[self.round_number - 1 :]
        paired_timing.time_rounds(
            sides,
            1,
            self.round_number,
            lambda one: self.finished_rounds.append({"blocks": one.blocks}),
            effort=SHORT_EFFORT,
        )
        files.write_json(self.path, self.finished_rounds)
        return dict(self.finished_rounds[-1]["blocks"])
