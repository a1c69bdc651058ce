"""recover: pruned model, dense teacher -> small trained model, by distillation on the training images."""

import time
from pathlib import Path

from torch import nn

from toolchain import loop, records
from toolchain.data import Dataset
from toolchain.values import Recipe, Surgery

VERSION = 2


def run(
    pruned: nn.Module, plan: Surgery, dense: loop.Trained, recipe: Recipe, data: Dataset, work: Path
) -> loop.Trained:
    """Trains the pruned model back towards the dense one. Without surgery the dense model itself is the result.

    Raises:
        ToolchainError: training diverged.
    """
    if not plan.keep and not plan.dropped:
        return dense
    # keyed by the plan itself: two targets that arrive at the same widths share the training
    key = records.digest(VERSION, dense.key, plan, recipe.recover, recipe.augment, recipe.seed)
    with records.stage(work, "recover", key) as stage:
        if stage.figures is not None:
            return loop.restored(stage, pruned)
        started = time.monotonic()
        job = loop.Job(
            data=data, spec=recipe.recover, augment=recipe.augment, seed=recipe.seed + 1, label="recover",
            folder=stage.folder, teacher=dense.model,
        )  # fmt: skip
        training = loop.train(pruned, job)
        return loop.store(stage, started, pruned, training, {})
