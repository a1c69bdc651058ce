"""rank: model, its calibration images -> what a criterion ranks channels by; gradients are collected once a model."""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from safetensors.torch import load_file, save
from torch import Tensor

from toolchain.config.recipe import PruneSpec
from toolchain.core import files, registry, stage_cache
from toolchain.data import loader
from toolchain.pruning import gradients
from toolchain.pruning.gradients import GradientMoments
from toolchain.training.finetune import FinetunedModel

VERSION = 1
LOADER_BATCH_SIZE = 64  # images prepared together; gradients are taken one by one
GRADIENTS_FILE = "gradients.safetensors"


@dataclass(frozen=True)
class ChannelCriterion:
    """A criterion and what it reads beside the weights."""

    score: Callable[..., Tensor]
    gradients: Mapping[str, GradientMoments] | None  # None where it reads weights alone


def prepare_criterion(adapted: FinetunedModel, spec: PruneSpec, work: Path) -> ChannelCriterion:
    """The recipe's criterion, with gradients on the calibration images where it asks for them.

    They are training images, which keeps validation out of the choice.

    Args:
        adapted: the model that is ranked, by its key, and its images.
    """
    room = registry.load_module("criteria", spec.criterion)
    return ChannelCriterion(room.score, _collected(adapted, work) if room.NEEDS else None)


def cache_key_parts(adapted: FinetunedModel, spec: PruneSpec) -> tuple[str, str]:
    """What the ranking of channels depends on beside the weights: the criterion's code, and the images it looks at."""
    room = registry.load_module("criteria", spec.criterion)
    seen = adapted.dataset.calibration_digest if room.NEEDS else ""
    return files.sha256_file(Path(str(room.__file__))), seen  # an edited criterion ranks anew


def _collected(adapted: FinetunedModel, work: Path) -> Mapping[str, GradientMoments]:
    data = adapted.dataset
    key = files.digest(VERSION, adapted.trained.key, data.calibration_digest, data.preprocess)
    with stage_cache.open_stage(work, "gradients", key) as stage:
        path = stage.folder / GRADIENTS_FILE
        if stage.record is None:
            started = time.monotonic()
            batches = loader.ordered_batches(data.calibration_images, data.preprocess, LOADER_BATCH_SIZE)
            found = gradients.collect(adapted.trained.model, list(batches))
            tensors = {f"mean.{name}": one.mean.contiguous() for name, one in found.items()}
            tensors |= {f"square.{name}": one.mean_square.contiguous() for name, one in found.items()}
            with files.open_atomic(path) as out:
                out.write(save(tensors))
            stage_cache.finish(stage, started, {"images": len(data.calibration_rows)})
        read = load_file(path)
    names = [name.removeprefix("mean.") for name in read if name.startswith("mean.")]
    return {name: GradientMoments(read[f"mean.{name}"], read[f"square.{name}"]) for name in names}
