"""Trained: carried out of a larger module; to be described."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save
from torch import nn

from toolchain.core import files, progress, stage_cache
from toolchain.training.loop import CHECKPOINT, WEIGHTS, Training, set_mode


@dataclass(frozen=True)
class Trained:
    """A stage's model with what is known of how it came about."""

    model: nn.Module
    key: str
    figures: Mapping[str, Any]  # history, best_epoch, best_accuracy and what the stage adds
    seconds: float


def store(
    stage: stage_cache.Stage, started: float, model: nn.Module, training: Training, figures: Mapping[str, Any]
) -> Trained:
    """Writes a trained stage's weights, then its record, and drops the checkpoint that is no longer needed."""
    save_weights(model, stage.folder / WEIGHTS)
    done = stage_cache.finish(stage, started, {**figures, **files.plain(training)})
    (stage.folder / CHECKPOINT).unlink(missing_ok=True)
    assert done.figures is not None
    return Trained(set_mode(model, training=False), stage.key, done.figures, done.seconds)


def restored(stage: stage_cache.Stage, model: nn.Module) -> Trained:
    """The result of a stage that was done before, its weights put into `model`."""
    assert stage.figures is not None
    model.load_state_dict(load_file(stage.folder / WEIGHTS))
    model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    progress.say(f"{stage.folder.parent.name}: kept from an earlier run ({stage.key})")
    return Trained(set_mode(model, training=False), stage.key, stage.figures, stage.seconds)


def save_weights(model: nn.Module, path: Path) -> None:
    """Writes a state dict as safetensors, atomically."""
    tensors = {name: tensor.detach().clone().contiguous() for name, tensor in model.state_dict().items()}
    with files.writing(path) as out:
        out.write(save(tensors))
