"""score: what a frozen model makes of a domain -> how well it would transfer, by every score that applies."""

import time
from collections.abc import Mapping
from pathlib import Path

from toolchain import discover, records, seen
from toolchain.errors import ToolchainError
from toolchain.stages.look import HEAD, Look

VERSION = 1
SHARED = ("evidence", "probe")  # rooms that scores call


def run(look: Look, work: Path, block: str = HEAD, names: tuple[str, ...] = ()) -> Mapping[str, float]:
    """Scores by name, higher is better; without those that need what the model does not have.

    Args:
        block: the last one that is kept.
        names: of the scores; empty: all.

    Raises:
        ToolchainError: there are too few images to tell, or the features are not finite.
    """
    wanted = names or tuple(discover.modules("scores"))
    code = {name: records.sha256_file(Path(str(discover.module("scores", name).__file__))) for name in wanted}
    code |= {name: records.sha256_file(discover.PACKAGE / f"{name}.py") for name in SHARED}
    with records.stage(work, "score", records.digest(VERSION, look.key, block, code)) as stage:
        if stage.figures is None:
            started = time.monotonic()
            train, held = look.seen("train", block), look.seen("val", block)
            seen.enough(train)
            found = {}
            for name in wanted:
                room = discover.module("scores", name)
                if "source" in room.NEEDS and train.source is None:
                    continue
                try:
                    found[name] = room.score(train, held)
                except (ArithmeticError, ValueError) as reason:
                    raise ToolchainError(f"the score {name} cannot be computed on these features: {reason}") from reason
            stage = records.finish(stage, started, {"scores": found})
        assert stage.figures is not None
        scores: Mapping[str, float] = stage.figures["scores"]
        return scores
