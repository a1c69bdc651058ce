"""fit: dense model, target -> what is cut, decided before any further training is spent."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from toolchain import discover, gradients, loader, progress, records, surgery
from toolchain.gradients import Gradient
from toolchain.stages.adapt import Adapted
from toolchain.values import Layer, Recipe, Surgery, Target

VERSION = 3
PLAN = "surgery.json"
GRADIENT_BATCH = 64  # images prepared together; gradients are taken one by one


@dataclass(frozen=True)
class Fit:
    """The plan as data, and the layer sizes it leads from and to."""

    surgery: Surgery
    key: str
    before: Sequence[Layer]
    after: Sequence[Layer]

    @property
    def cuts(self) -> bool:
        """Whether anything is cut at all."""
        return bool(self.surgery.keep or self.surgery.dropped)


def run(adapted: Adapted, recipe: Recipe, target: Target, image: Tensor, work: Path) -> Fit:
    """Plans the surgery for the recipe's ratio, widths in multiples of the target's alignment.

    Args:
        adapted: the dense model, whose weights rank the channels; its calibration images, for criteria that ask what
            the loss does on them.
        image: one example input, float32 [1, 3, height, width].

    Raises:
        ToolchainError: the ratio cannot be reached, or the model cannot be traced.
    """
    dense = adapted.trained
    room = discover.module("criteria", recipe.prune.criterion)
    written = records.sha256_file(Path(str(room.__file__)))  # an edited criterion ranks anew
    seen = adapted.data.calibration_digest if room.NEEDS else ""
    key = records.digest(VERSION, dense.key, recipe.prune, written, seen, target.alignment)
    with records.stage(work, "fit", key) as stage:
        if stage.figures is None:
            started = time.monotonic()
            collected = _gradients(adapted) if "gradients" in room.NEEDS and recipe.prune.ratio > 0 else None
            planned = surgery.plan(
                dense.model, image, head=adapted.head, spec=recipe.prune, alignment=target.alignment,
                criterion=room.score, gradients=collected,
            )  # fmt: skip
            records.write_json(stage.folder / PLAN, planned)
            stage = records.finish(stage, started, {})
        # read back from its file, so that every run replays a plan and none carries one over in memory
        planned = surgery.read(stage.folder / PLAN)
        before = surgery.layers(dense.model, image)
        after = surgery.layers(surgery.apply(dense.model, planned), image)
    macs = [sum(layer.macs for layer in sizes) for sizes in (before, after)]
    progress.say(f"fit: {macs[0] / 1e6:.1f} M multiply-accumulates -> {macs[1] / 1e6:.1f} M ({macs[1] / macs[0]:.0%})")
    return Fit(planned, key, before, after)


def _gradients(adapted: Adapted) -> Mapping[str, Gradient]:
    """Of the dense model on the calibration images, which are training images and keep validation out of the choice."""
    data = adapted.data
    batches = loader.batches(data.calibration_images, data.preprocess, GRADIENT_BATCH)
    return gradients.collect(adapted.trained.model, list(batches))
