"""The result of a training stage, and how it is written to and read from the stage cache."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save
from torch import nn

from toolchain.core import files, progress, stage_cache
from toolchain.training.loop import CHECKPOINT_FILE, WEIGHTS_FILE, TrainingResult, set_mode


@dataclass(frozen=True)
class TrainedModel:
    """A stage's model in inference mode, with the record of its training."""

    model: nn.Module
    key: str  # cache key of the stage
    record: Mapping[str, Any]  # history, best_epoch, best_accuracy and what the stage adds
    seconds: float


def save_trained_model(
    stage: stage_cache.CachedStage,
    started: float,
    model: nn.Module,
    training: TrainingResult,
    figures: Mapping[str, Any],
) -> TrainedModel:
    """Write a stage's weights, then its record, and delete the checkpoint that is no longer needed.

    Args:
        stage: the open stage of the cache.
        started: `time.monotonic()` at the start of the stage, seconds.
        model: the trained model.
        training: its history and best epoch, for the record.
        figures: further entries of the record.
    """
    save_weights(model, stage.folder / WEIGHTS_FILE)
    finished = stage_cache.finish(stage, started, {**figures, **files.to_jsonable(training)})
    (stage.folder / CHECKPOINT_FILE).unlink(missing_ok=True)
    assert finished.record is not None
    return TrainedModel(set_mode(model, training=False), stage.key, finished.record, finished.seconds)


def load_trained_model(stage: stage_cache.CachedStage, model: nn.Module) -> TrainedModel:
    """Return the result of a finished stage, with its weights loaded into `model`."""
    assert stage.record is not None
    model.load_state_dict(load_file(stage.folder / WEIGHTS_FILE))
    model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    progress.log(f"{stage.folder.parent.name}: result of an earlier run reused (cache key {stage.key})")
    return TrainedModel(set_mode(model, training=False), stage.key, stage.record, stage.seconds)


def save_weights(model: nn.Module, path: Path) -> None:
    """Write a state dict as safetensors, atomically."""
    tensors = {name: tensor.detach().clone().contiguous() for name, tensor in model.state_dict().items()}
    with files.open_atomic(path) as out:
        out.write(save(tensors))
