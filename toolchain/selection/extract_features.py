"""Extract what a pretrained model makes of a dataset's images, block by block, before any training.

One pass over the images serves every score, every depth at which the network may be cut, and every target.
"""

import dataclasses
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save
from torch import Tensor, nn

from toolchain.config.recipe import ModelSpec
from toolchain.core import files, progress, stage_cache
from toolchain.core.types import Preprocessing
from toolchain.data.decoded_dataset import Dataset, Images
from toolchain.data.loader import ordered_batches
from toolchain.models import blocks, build, weights
from toolchain.models.frozen_features import FrozenFeatures
from toolchain.training import linear_probe
from toolchain.training.loop import EVALUATION_BATCH_SIZE, set_mode

VERSION = 1
MAX_IMAGES_PER_SPLIT = 2000
FEATURES_FILE = "features.safetensors"
HEAD_INPUT = ""  # in place of a block's name: the input of the whole network's head
SOURCE_PROBABILITIES = "source"  # softmax of the checkpoint's own head


@dataclass(frozen=True)
class ExtractedFeatures:
    """Features of training and validation images, by block."""

    loaded_weights: Mapping[str, Any]  # `weights.LoadedWeights` as JSON
    blocks: tuple[str, ...]  # in order; empty where the network cannot be cut
    tensors: Mapping[str, Tensor]
    key: str

    def select(self, split: str, block: str = HEAD_INPUT) -> FrozenFeatures:
        """Return the features that scores are computed from.

        Args:
            split: "train" or "val".
            block: the last block that is kept; by default the whole network.
        """
        whole_network = block == HEAD_INPUT
        source = self.tensors.get(f"{split}.{SOURCE_PROBABILITIES}") if whole_network else None
        earlier_blocks = self.blocks if whole_network else self.blocks[: self.blocks.index(block)]
        levels = [self.tensors[f"{split}.features.{name}"].double().numpy() for name in (*earlier_blocks, block)]
        if len(levels) > 1 and _are_equal(*levels[-2:]):  # nothing lies between the last block and the head
            del levels[-2]
        return FrozenFeatures(
            features=levels[-1],
            labels=self.tensors[f"{split}.labels"].numpy(),
            block_features=tuple(levels),
            source_probabilities=None if source is None else source.double().numpy(),
        )


def _are_equal(level: np.ndarray, other: np.ndarray) -> bool:
    return level.shape == other.shape and np.allclose(level, other, 1e-3, 1e-5)


def extract(name: str, spec: ModelSpec, data: Dataset, work: Path) -> ExtractedFeatures:
    """Extract a model's features, or read those of an earlier run.

    Args:
        name: for the progress bar.
        spec: the model; its mean and standard deviation normalise the images.
        data: the images.
        work: the stage cache.

    Raises:
        ToolchainError: the model or its weights are not available, or it does not accept images of this size.
    """
    key = files.digest(
        VERSION, data.digest, dataclasses.replace(spec, weights=""), weights.weights_digest(spec), MAX_IMAGES_PER_SPLIT
    )
    with stage_cache.open_stage(work, "look", key) as stage:
        path = stage.folder / FEATURES_FILE
        if stage.record is None:
            started = time.monotonic()
            tensors, loaded, block_names = _extract_splits(name, spec, data)
            with files.open_atomic(path) as file:
                file.write(save(tensors))
            stage = stage_cache.finish(stage, started, {"weights": loaded, "blocks": block_names})
        assert stage.record is not None
        return ExtractedFeatures(stage.record["weights"], tuple(stage.record["blocks"]), load_file(path), key)


def _extract_splits(
    name: str, spec: ModelSpec, data: Dataset
) -> tuple[dict[str, Tensor], weights.LoadedWeights, list[str]]:
    """Return the tensors of the training and validation images, which weights were loaded, and the block names."""
    model, head, loaded, has_own_head = build.build_with_pretrained_head(spec, len(data.classes), seed=0)
    model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    preprocess = dataclasses.replace(data.preprocess, mean=spec.mean, std=spec.std)
    block_ends = {block.name: block.last_module for block in blocks.find(model, head)}
    splits = {
        split: images.select(sample_stratified(images.labels.numpy(), MAX_IMAGES_PER_SPLIT))
        for split, images in data.splits.items()
        if split != "test"
    }
    tensors: dict[str, Tensor] = {}
    with progress.show_bar(f"look: {name}", sum(len(images) for images in splits.values())) as bar:
        for split, images in splits.items():
            features, logits = _extract_features(model, head, block_ends, images, preprocess, bar)
            tensors |= {f"{split}.features.{block}": values for block, values in features.items()}
            tensors[f"{split}.labels"] = images.labels.clone()
            if has_own_head:
                tensors[f"{split}.{SOURCE_PROBABILITIES}"] = logits.softmax(1)
    return tensors, loaded, list(block_ends)


def sample_stratified(labels: np.ndarray, limit: int) -> list[int]:
    """Return at most `limit` rows in order, every class in its share and at least twice; the same at every call.

    Args:
        labels: class numbers, [images].
        limit: highest number of rows.
    """
    order = np.random.default_rng(0).permutation(len(labels))
    priority = np.empty(len(labels))  # lowest first; 0 for the first two rows of each class
    for label in np.unique(labels):
        rows = order[labels[order] == label]
        priority[rows] = np.maximum(np.arange(len(rows)) - 1, 0) / len(rows)
    return sorted(np.argsort(priority, kind="stable")[:limit].tolist())


def _extract_features(
    model: nn.Module,
    head: str,
    block_ends: Mapping[str, str],
    images: Images,
    preprocess: Preprocessing,
    bar: progress.ProgressBar,
) -> tuple[dict[str, Tensor], Tensor]:
    """Return the pooled output of each block and the head's input, float32 [images, features] each, and the logits."""
    batches: dict[str, list[Tensor]] = {name: [] for name in (*block_ends, HEAD_INPUT)}
    logits: list[Tensor] = []
    set_mode(model, training=False)
    with _record_features(model, head, block_ends, batches), torch.inference_mode():
        for batch, labels in ordered_batches(images, preprocess, EVALUATION_BATCH_SIZE):
            logits.append(model(batch))
            bar.step(count=len(labels))
    return {name: torch.cat(parts).clone() for name, parts in batches.items()}, torch.cat(logits).clone()


@contextmanager
def _record_features(
    model: nn.Module, head: str, block_ends: Mapping[str, str], batches: Mapping[str, list[Tensor]]
) -> Iterator[None]:
    """Append the pooled features of every batch to `batches` while the context is open."""
    with ExitStack() as stack:
        for name, module in block_ends.items():

            def record_output(_: nn.Module, __: object, output: Tensor, name: str = name) -> None:
                batches[name].append(linear_probe.pool_features(output))

            stack.callback(model.get_submodule(module).register_forward_hook(record_output).remove)

        def record_input(_: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            batches[HEAD_INPUT].append(linear_probe.pool_features(inputs[0]))

        stack.callback(model.get_submodule(head).register_forward_pre_hook(record_input).remove)
        yield
