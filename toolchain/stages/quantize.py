"""quantize: small model, scheme, placement -> fake-quantized trained model; never worse on validation than calibrated.

Ranges are first observed on the calibration images. Training then moves weights and ranges together; the ranges
of activations are frozen for the last epoch, so that what is validated is what is exported.
"""

import dataclasses
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from torch import Tensor, nn
from torch.fx import GraphModule

from toolchain import loop, quantizer, records
from toolchain.data import Dataset
from toolchain.stages.adapt import Adapted
from toolchain.values import Placement, Recipe, Target

VERSION = 5


@dataclass(frozen=True)
class Quantized:
    """A fake-quantized graph ready for export."""

    trained: loop.Trained
    planned: tuple[str, ...]  # modules that are to run in integers
    method: Literal["qat", "ptq"]  # "ptq" where calibration was all, or training did not improve on it

    @property
    def graph(self) -> GraphModule:
        """The fake-quantized model."""
        assert isinstance(self.trained.model, GraphModule)
        return self.trained.model


@dataclass(frozen=True)
class Family:
    """The float and the quantized form of one architecture."""

    name: Literal["dense", "pruned"]
    trained: loop.Trained
    quantized: Quantized | None  # None where the target has no integers


def families(
    adapted: Adapted,
    small: loop.Trained,
    placement: Placement,
    recipe: Recipe,
    target: Target,
    image: Tensor,
    work: Path,
) -> list[Family]:
    """Quantizes what may ship with training; beside it the dense model by calibration alone, for comparison."""
    dense = adapted.trained

    def one(source: loop.Trained, teacher: nn.Module | None) -> Quantized | None:
        if "int8" not in target.precisions:
            return None
        return run(source, teacher, placement, recipe, target, adapted, image, work)

    if small is dense:
        return [Family("dense", dense, one(dense, dense.model))]
    return [Family("dense", dense, one(dense, None)), Family("pruned", small, one(small, dense.model))]


def run(
    source: loop.Trained, teacher: nn.Module | None, placement: Placement, recipe: Recipe, target: Target,
    adapted: Adapted, image: Tensor, work: Path,
) -> Quantized:  # fmt: skip
    """Calibrates, then trains with quantization simulated; without a teacher it only calibrates.

    Args:
        source: the float model; left as it was.
        teacher: the dense model to distil from; None means post-training quantization.
        placement: what is quantized.
        adapted: what the dense model was trained on and with.
        image: one example input, float32 [1, 3, height, width].

    Raises:
        ToolchainError: the model cannot be exported, or training diverged.
    """
    spec = recipe.quantize.train if teacher is not None else dataclasses.replace(recipe.quantize.train, epochs=0)
    key = records.digest(
        VERSION, source.key, placement, target.scheme, spec, adapted.augment, recipe.balance, recipe.seed,
        adapted.data.calibration,
    )  # fmt: skip
    graph, planned = quantizer.prepare(source.model, image, placement, target.scheme)
    with records.stage(work, "quantize", key) as stage:
        if stage.figures is None:
            started = time.monotonic()
            _calibrate(graph, adapted.data)
            job = loop.Job(
                data=adapted.data, spec=spec, augment=adapted.augment, seed=recipe.seed + 2, label="quantize",
                folder=stage.folder, balance=recipe.balance, teacher=teacher, switch=_ranges_until(spec.epochs - 1),
            )  # fmt: skip
            training = loop.train(graph, job, keep_start=True)
            trained = loop.store(stage, started, graph, training, {"planned": planned})
        else:
            trained = loop.restored(stage, graph)
    quantizer.observe(graph, ranges=False, rounding=True)
    method: Literal["qat", "ptq"] = "qat" if trained.figures["best_epoch"] >= 0 else "ptq"
    return Quantized(trained, planned, method)


def _calibrate(graph: GraphModule, data: Dataset) -> None:
    """Observes activation ranges on the calibration images, then freezes them."""
    chosen = data.splits["train"].chosen(data.calibration)
    quantizer.observe(graph, ranges=True, rounding=False)
    loop.predict(graph, chosen, data.preprocess)
    quantizer.observe(graph, ranges=False, rounding=True)


def _ranges_until(last: int) -> loop.Hook:
    """Observes ranges while training in every epoch before `last`, never while validating."""

    def switch(model: nn.Module, epoch: int, training: bool) -> None:
        quantizer.observe(model, ranges=training and epoch < last, rounding=True)

    return switch
