"""recover: pruned model, dense teacher -> small trained model, by distillation on the training images."""

import time
from pathlib import Path

from torch import nn

from toolchain import loop, records
from toolchain.stages.adapt import Adapted
from toolchain.values import Recipe, Surgery

VERSION = 3


def run(pruned: nn.Module, plan: Surgery, adapted: Adapted, recipe: Recipe, work: Path) -> loop.Trained:
    """Trains the pruned model back towards the dense one. Without surgery the dense model itself is the result.

    Raises:
        ToolchainError: training diverged.
    """
    dense = adapted.trained
    if not plan.keep and not plan.dropped:
        return dense
    # keyed by the plan itself: two targets that arrive at the same widths share the training
    key = records.digest(VERSION, dense.key, plan, recipe.recover, adapted.augment, recipe.balance, recipe.seed)
    with records.stage(work, "recover", key) as stage:
        if stage.figures is not None:
            return loop.restored(stage, pruned)
        started = time.monotonic()
        job = loop.Job(
            data=adapted.data, spec=recipe.recover, augment=adapted.augment, seed=recipe.seed + 1, label="recover",
            folder=stage.folder, balance=recipe.balance, teacher=dense.model,
        )  # fmt: skip
        training = loop.train(pruned, job)
        return loop.store(stage, started, pruned, training, {})
