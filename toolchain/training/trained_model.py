"""Trained: carried out of a larger module; to be described."""

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
    """A stage's model with what is known of how it came about."""

    model: nn.Module
    key: str
    record: Mapping[str, Any]  # history, best_epoch, best_accuracy and what the stage adds
    seconds: float


def save_trained_model(
    stage: stage_cache.CachedStage,
    started: float,
    model: nn.Module,
    training: TrainingResult,
    figures: Mapping[str, Any],
) -> TrainedModel:
    """Writes a trained stage's weights, then its record, and drops the checkpoint that is no longer needed."""
    save_weights(model, stage.folder / WEIGHTS_FILE)
    done = stage_cache.finish(stage, started, {**figures, **files.to_jsonable(training)})
    (stage.folder / CHECKPOINT_FILE).unlink(missing_ok=True)
    assert done.record is not None
    return TrainedModel(set_mode(model, training=False), stage.key, done.record, done.seconds)


def load_trained_model(stage: stage_cache.CachedStage, model: nn.Module) -> TrainedModel:
    """The result of a stage that was done before, its weights put into `model`."""
    assert stage.record is not None
    model.load_state_dict(load_file(stage.folder / WEIGHTS_FILE))
    model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    progress.log(f"{stage.folder.parent.name}: kept from an earlier run ({stage.key})")
    return TrainedModel(set_mode(model, training=False), stage.key, stage.record, stage.seconds)


def save_weights(model: nn.Module, path: Path) -> None:
    """Writes a state dict as safetensors, atomically."""
    tensors = {name: tensor.detach().clone().contiguous() for name, tensor in model.state_dict().items()}
    with files.open_atomic(path) as out:
        out.write(save(tensors))
