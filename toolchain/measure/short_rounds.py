"""Short timing rounds for searches: enough to choose among many candidates, and kept so that a killed run can resume."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from toolchain.core import files
from toolchain.edge.timing_process import TimingEffort
from toolchain.measure import paired_timing
from toolchain.measure.paired_timing import Round, TimedModel

SHORT_EFFORT = TimingEffort(seconds=2.5, warmup_runs=4, fewest_blocks=7, most_seconds=10.0, slow_seconds=0.1)
FILE_NAME = "batches.json"


class ShortRounds:
    """The rounds of a search, in the order in which it asks for them; those of an interrupted run are not repeated."""

    def __init__(self, folder: Path) -> None:
        self.path, self.round_number = folder / FILE_NAME, 0
        self.finished_rounds: list[dict[str, Any]] = files.read_json(self.path) if self.path.exists() else []

    def measure(self, models: Sequence[TimedModel]) -> Mapping[str, Any]:
        """Time models in one process, or return what an earlier run measured for the same models at this point.

        Rounds of the earlier run that come later are dropped where the models differ.

        Returns:
            milliseconds by model, [blocks][runs of a block].

        Raises:
            ToolchainError: as for `paired_timing.time_rounds`.
        """
        names, self.round_number = sorted(model.name for model in models), self.round_number + 1
        earlier = (
            self.finished_rounds[self.round_number - 1] if self.round_number <= len(self.finished_rounds) else None
        )
        if earlier is not None and sorted(earlier["blocks"]) == names:
            return dict(earlier["blocks"])
        del self.finished_rounds[self.round_number - 1 :]

        def keep(measured: Round) -> None:
            self.finished_rounds.append({"blocks": measured.blocks})

        paired_timing.time_rounds(models, 1, self.round_number, keep, effort=SHORT_EFFORT)
        files.write_json(self.path, self.finished_rounds)
        return dict(self.finished_rounds[-1]["blocks"])
