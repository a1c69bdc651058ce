"""Short rounds of timing for searches: enough to choose among many candidates, kept so that a killed run goes on."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from toolchain.core import files
from toolchain.edge.timing_process import TimingEffort
from toolchain.measure import paired_timing

SHORT = TimingEffort(seconds=2.5, warmup_runs=4, fewest_blocks=7, most_seconds=10.0, slow_seconds=0.1)
FILE = "batches.json"


class Batches:
    """Rounds in the order in which a search asks for them."""

    def __init__(self, folder: Path) -> None:
        self.path, self.next = folder / FILE, 0
        self.done: list[dict[str, Any]] = files.read_json(self.path) if self.path.exists() else []

    def run(self, sides: Sequence[paired_timing.Side]) -> Mapping[str, Any]:
        """Samples of one process by side, or what an earlier run measured for the same sides at this point."""
        names, self.next = sorted(side.name for side in sides), self.next + 1
        done = self.done[self.next - 1] if self.next <= len(self.done) else None
        if done is not None and sorted(done["blocks"]) == names:
            return dict(done["blocks"])
        del self.done[self.next - 1 :]
        paired_timing.rounds(sides, 1, self.next, lambda one: self.done.append({"blocks": one.blocks}), effort=SHORT)
        files.write_json(self.path, self.done)
        return dict(self.done[-1]["blocks"])
