"""look: pretrained model, domain -> what it makes of the images, block by block, before any training.

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
from toolchain.models import blocks, build
from toolchain.models import weights as weights_module
from toolchain.models.frozen_features import FrozenFeatures
from toolchain.training import linear_probe
from toolchain.training.loop import EVALUATION_BATCH_SIZE, set_mode

VERSION = 1
MAX_IMAGES_PER_SPLIT = 2000  # of a split, at most
FEATURES_FILE = "features.safetensors"
HEAD_INPUT = ""  # in place of a block's name: what the whole network hands to its head
SOURCE_PROBABILITIES = "source"  # what its own head answers


@dataclass(frozen=True)
class ExtractedFeatures:
    """Features of some training and validation images, by block."""

    loaded_weights: Mapping[str, Any]  # what was loaded, as `models.Loaded`
    blocks: tuple[str, ...]  # in order; empty where the network cannot be cut
    tensors: Mapping[str, Tensor]
    key: str

    def select(self, split: str, block: str = HEAD_INPUT) -> FrozenFeatures:
        """What the scores look at.

        Args:
            split: "train" or "val".
            block: the last one that is kept; the whole network otherwise.
        """
        source = self.tensors.get(f"{split}.{SOURCE_PROBABILITIES}") if block == HEAD_INPUT else None
        before = self.blocks if block == HEAD_INPUT else self.blocks[: self.blocks.index(block)]
        levels = [self.tensors[f"{split}.features.{name}"].double().numpy() for name in (*before, block)]
        if len(levels) > 1 and _alike(*levels[-2:]):  # nothing lies between the last block and the head
            del levels[-2]
        return FrozenFeatures(
            features=levels[-1],
            labels=self.tensors[f"{split}.labels"].numpy(),
            block_features=tuple(levels),
            source_probabilities=None if source is None else source.double().numpy(),
        )


def _alike(one: np.ndarray, other: np.ndarray) -> bool:
    return one.shape == other.shape and np.allclose(one, other, 1e-3, 1e-5)


def extract(name: str, spec: ModelSpec, data: Dataset, work: Path) -> ExtractedFeatures:
    """Looks at the images, or reads what an earlier run saw.

    Args:
        name: for the progress bar.
        data: the domain's images; how they are normalised is up to the model.

    Raises:
        ToolchainError: the model or its weights cannot be had, or it does not take pictures of this size.
    """
    key = files.digest(
        VERSION,
        data.digest,
        dataclasses.replace(spec, weights=""),
        weights_module.weights_digest(spec),
        MAX_IMAGES_PER_SPLIT,
    )
    with stage_cache.open_stage(work, "look", key) as stage:
        path = stage.folder / FEATURES_FILE
        if stage.record is None:
            started = time.monotonic()
            tensors, loaded, names = _look(name, spec, data)
            with files.open_atomic(path) as out:
                out.write(save(tensors))
            stage = stage_cache.finish(stage, started, {"weights": loaded, "blocks": names})
        assert stage.record is not None
        return ExtractedFeatures(stage.record["weights"], tuple(stage.record["blocks"]), load_file(path), key)


def _look(
    name: str, spec: ModelSpec, data: Dataset
) -> tuple[dict[str, Tensor], weights_module.LoadedWeights, list[str]]:
    model, head, loaded, whole = build.build_with_pretrained_head(spec, len(data.classes), seed=0)
    model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    preprocess = dataclasses.replace(data.preprocess, mean=spec.mean, std=spec.std)
    ends = {block.name: block.last_module for block in blocks.find(model, head)}
    parts = {
        split: part.select(sample_stratified(part.labels.numpy(), MAX_IMAGES_PER_SPLIT))
        for split, part in data.splits.items()
        if split != "test"
    }
    tensors: dict[str, Tensor] = {}
    with progress.show_bar(f"look: {name}", sum(len(part) for part in parts.values())) as bar:
        for split, part in parts.items():
            features, answers = _features(model, head, ends, part, preprocess, bar)
            tensors |= {f"{split}.features.{block}": found for block, found in features.items()}
            tensors[f"{split}.labels"] = part.labels.clone()
            if whole:
                tensors[f"{split}.{SOURCE_PROBABILITIES}"] = answers.softmax(1)
    return tensors, loaded, list(ends)


def sample_stratified(labels: np.ndarray, most: int) -> list[int]:
    """Rows of at most so many images with every class in its share, drawn with a fixed seed, in their order."""
    order = np.random.default_rng(0).permutation(len(labels))
    place = np.empty(len(labels))
    for label in np.unique(labels):
        own = order[labels[order] == label]
        place[own] = np.maximum(np.arange(len(own)) - 1, 0) / len(own)  # two of each in any case
    return sorted(np.argsort(place, kind="stable")[:most].tolist())


def _features(
    model: nn.Module,
    head: str,
    ends: Mapping[str, str],
    images: Images,
    preprocess: Preprocessing,
    bar: progress.ProgressBar,
) -> tuple[dict[str, Tensor], Tensor]:
    """Pooled output of each block and input of the head, float32 [images, features] each; and the head's answers."""
    found: dict[str, list[Tensor]] = {name: [] for name in (*ends, HEAD_INPUT)}
    answers: list[Tensor] = []
    set_mode(model, training=False)
    with _noting(model, head, ends, found), torch.inference_mode():
        for batch, labels in ordered_batches(images, preprocess, EVALUATION_BATCH_SIZE):
            answers.append(model(batch))
            bar.step(count=len(labels))
    return {name: torch.cat(parts).clone() for name, parts in found.items()}, torch.cat(answers).clone()


@contextmanager
def _noting(model: nn.Module, head: str, ends: Mapping[str, str], found: Mapping[str, list[Tensor]]) -> Iterator[None]:
    with ExitStack() as stack:
        for name, module in ends.items():

            def after(_: nn.Module, __: object, output: Tensor, name: str = name) -> None:
                found[name].append(linear_probe.pool_features(output))

            stack.callback(model.get_submodule(module).register_forward_hook(after).remove)

        def before(_: nn.Module, given: tuple[Tensor, ...]) -> None:
            found[HEAD_INPUT].append(linear_probe.pool_features(given[0]))

        stack.callback(model.get_submodule(head).register_forward_pre_hook(before).remove)
        yield
