"""Compute every transferability score that applies to a frozen model on a dataset."""

import time
from collections.abc import Mapping
from pathlib import Path

from toolchain.core import files, registry, stage_cache
from toolchain.core.errors import ToolchainError
from toolchain.models import frozen_features
from toolchain.selection.extract_features import HEAD_INPUT, ExtractedFeatures

VERSION = 1
SHARED_MODULES = ("selection/log_evidence", "training/linear_probe")  # called by scores, so part of their cache key


def compute(
    extracted: ExtractedFeatures, work: Path, block: str = HEAD_INPUT, names: tuple[str, ...] = ()
) -> Mapping[str, float]:
    """Return scores by name, higher is better; those whose inputs the model does not have are missing.

    Args:
        extracted: the model's features.
        work: the stage cache.
        block: the last block that is kept; by default the whole network.
        names: of the scores; empty: all.

    Raises:
        ToolchainError: there are too few images, or the features are not finite.
    """
    names = names or tuple(registry.list_modules("scores"))
    code = {name: files.sha256_file(Path(str(registry.load_module("scores", name).__file__))) for name in names}
    code |= {name: files.sha256_file(registry.PACKAGE_FOLDER / f"{name}.py") for name in SHARED_MODULES}
    with stage_cache.open_stage(work, "score", files.digest(VERSION, extracted.key, block, code)) as stage:
        if stage.record is None:
            started = time.monotonic()
            train, validation = extracted.select("train", block), extracted.select("val", block)
            frozen_features.check_scorable(train)
            computed = {}
            for name in names:
                module = registry.load_module("scores", name)
                if "source" in module.NEEDS and train.source_probabilities is None:
                    continue
                try:
                    computed[name] = module.score(train, validation)
                except (ArithmeticError, ValueError) as reason:
                    raise ToolchainError(f"the score {name} cannot be computed on these features: {reason}") from reason
            stage = stage_cache.finish(stage, started, {"scores": computed})
        assert stage.record is not None
        scores: Mapping[str, float] = stage.record["scores"]
        return scores
