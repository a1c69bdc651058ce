"""score: what a frozen model makes of a domain -> how well it would transfer, by every score that applies."""

import time
from collections.abc import Mapping
from pathlib import Path

from toolchain.core import files, registry, stage_cache
from toolchain.core.errors import ToolchainError
from toolchain.models import frozen_features
from toolchain.selection.extract_features import HEAD_INPUT, ExtractedFeatures

VERSION = 1
SHARED_MODULES = ("selection/log_evidence", "training/linear_probe")  # rooms that scores call


def compute(
    look: ExtractedFeatures, work: Path, block: str = HEAD_INPUT, names: tuple[str, ...] = ()
) -> Mapping[str, float]:
    """Scores by name, higher is better; without those that need what the model does not have.

    Args:
        block: the last one that is kept.
        names: of the scores; empty: all.

    Raises:
        ToolchainError: there are too few images to tell, or the features are not finite.
    """
    wanted = names or tuple(registry.list_modules("scores"))
    code = {name: files.sha256_file(Path(str(registry.load_module("scores", name).__file__))) for name in wanted}
    code |= {name: files.sha256_file(registry.PACKAGE_FOLDER / f"{name}.py") for name in SHARED_MODULES}
    with stage_cache.open_stage(work, "score", files.digest(VERSION, look.key, block, code)) as stage:
        if stage.record is None:
            started = time.monotonic()
            train, held = look.select("train", block), look.select("val", block)
            frozen_features.check_scorable(train)
            found = {}
            for name in wanted:
                room = registry.load_module("scores", name)
                if "source" in room.NEEDS and train.source_probabilities is None:
                    continue
                try:
                    found[name] = room.score(train, held)
                except (ArithmeticError, ValueError) as reason:
                    raise ToolchainError(f"the score {name} cannot be computed on these features: {reason}") from reason
            stage = stage_cache.finish(stage, started, {"scores": found})
        assert stage.record is not None
        scores: Mapping[str, float] = stage.record["scores"]
        return scores
