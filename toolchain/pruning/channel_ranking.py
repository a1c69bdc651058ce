"""The criterion that ranks channels, with the gradients it needs.

Gradients are taken on the calibration images, once per model, and kept in the stage cache.
"""

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
LOADER_BATCH_SIZE = 64  # images preprocessed together; gradients are taken image by image
GRADIENTS_FILE = "gradients.safetensors"


@dataclass(frozen=True)
class ChannelCriterion:
    """A pruning criterion and the gradients it reads."""

    score: Callable[..., Tensor]
    gradients: Mapping[str, GradientMoments] | None  # by parameter name; None where it reads weights only


def prepare_criterion(finetuned: FinetunedModel, spec: PruneSpec, work: Path) -> ChannelCriterion:
    """Return the recipe's criterion, with gradients on the calibration images where it needs them.

    Calibration images are training images, so validation has no part in the ranking.

    Args:
        finetuned: the model to rank and its dataset; the model's key identifies the gradients in the cache.
        spec: names the criterion.
        work: the stage cache.
    """
    criterion = registry.load_module("criteria", spec.criterion)
    return ChannelCriterion(criterion.score, _collect_gradients(finetuned, work) if criterion.NEEDS else None)


def cache_key_parts(finetuned: FinetunedModel, spec: PruneSpec) -> tuple[str, str]:
    """Return what the ranking depends on beside the weights: hash of the criterion's file, digest of the images it uses."""
    criterion = registry.load_module("criteria", spec.criterion)
    images_digest = finetuned.dataset.calibration_digest if criterion.NEEDS else ""
    return files.sha256_file(Path(str(criterion.__file__))), images_digest  # an edited criterion ranks anew


def _collect_gradients(finetuned: FinetunedModel, work: Path) -> Mapping[str, GradientMoments]:
    dataset = finetuned.dataset
    key = files.digest(VERSION, finetuned.trained.key, dataset.calibration_digest, dataset.preprocess)
    with stage_cache.open_stage(work, "gradients", key) as stage:
        path = stage.folder / GRADIENTS_FILE
        if stage.record is None:
            started = time.monotonic()
            batches = loader.ordered_batches(dataset.calibration_images, dataset.preprocess, LOADER_BATCH_SIZE)
            collected = gradients.collect(finetuned.trained.model, list(batches))
            tensors = {f"mean.{name}": moments.mean.contiguous() for name, moments in collected.items()}
            tensors |= {f"square.{name}": moments.mean_square.contiguous() for name, moments in collected.items()}
            with files.open_atomic(path) as out:
                out.write(save(tensors))
            stage_cache.finish(stage, started, {"images": len(dataset.calibration_rows)})
        stored = load_file(path)
    names = [name.removeprefix("mean.") for name in stored if name.startswith("mean.")]
    return {name: GradientMoments(stored[f"mean.{name}"], stored[f"square.{name}"]) for name in names}
