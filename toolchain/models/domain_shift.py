"""Measure how far a domain's images are from those that a model was pretrained on.

Without the source images: batch norm's running statistics describe the data that the model was trained on, so the
target's own statistics at the same layers tell the distance (Li et al., "Revisiting Batch Normalization for Practical
Domain Adaptation", arXiv 1603.04779). With them: the proxy A-distance 2 (1 - 2 error) of a linear classifier that tells
the two domains apart by the backbone's features (Ben-David et al., "Analysis of Representations for Domain Adaptation",
NIPS 2006). Neither number means anything alone, so each comes with a lower and an upper reference measured on the same
model.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from toolchain.config.dataset import Domain
from toolchain.config.recipe import ModelSpec
from toolchain.core import progress
from toolchain.core.errors import ToolchainError
from toolchain.core.types import Preprocessing
from toolchain.data import dataset_files, prepare
from toolchain.edge import run, served_pixels
from toolchain.models import build, published_pixels
from toolchain.models.domain_classifier import proxy_a_distance

MAX_IMAGES = 256  # per domain
MIN_IMAGES = 20  # per domain
BATCH_SIZE = 32
MIN_SOURCE_VARIANCE = 1e-6  # running variance; a channel below it was never active, and distances in it mean nothing
# Share of the way from the lower to the upper reference. With the statistics of a MobileNetV2 trained on ImageNet,
# photos of waste (TrashNet) are at 0.49 and thermal images of solar modules at 1.00.
NEAR_BELOW, FAR_ABOVE = 0.4, 0.8
BatchNorm = nn.modules.batchnorm._BatchNorm


@dataclass(frozen=True, kw_only=True)
class CalibratedDistance:
    """A distance with the references that it is read against, all measured in the same way."""

    value: float
    lowest: float  # of the same measurement without a shift
    highest: float  # and between domains that have nothing in common

    @property
    def relative(self) -> float:
        """Return the share of the way from the lower to the upper reference, 0 to 1."""
        share = (self.value - self.lowest) / max(self.highest - self.lowest, 1e-9)
        return min(1.0, max(0.0, share))

    @property
    def verdict(self) -> str:
        """Return "near", "moderately far" or "far"."""
        return "near" if self.relative < NEAR_BELOW else "far" if self.relative > FAR_ABOVE else "moderately far"


@dataclass(frozen=True, kw_only=True)
class LayerShift:
    """Shift of the input of one batch norm layer, averaged over its channels."""

    name: str
    mean: float  # |target's mean - source's mean| in standard deviations of the source
    spread: float  # |ln(target's variance / source's variance)|


@dataclass(frozen=True, kw_only=True)
class DomainShift:
    """How far a domain's images are from those that a model was pretrained on."""

    model: str
    source: str  # the source domain's name; "" where its images are not available
    pictures: int  # images of the domain that were used
    source_pictures: int
    statistics: CalibratedDistance | None  # mean over layers of `LayerShift.mean`; None: the model has no batch norm
    spread: float | None  # mean over layers of `LayerShift.spread`
    layers: tuple[LayerShift, ...]
    features: CalibratedDistance | None  # proxy A-distance, 0 to 2; None without a source domain
    text: str


@dataclass(frozen=True, eq=False)
class _Activations:
    """What is collected while a model runs on some images."""

    features: Tensor  # float32 [images, features]
    layers: tuple[LayerShift, ...]


def measure(
    domain: Domain, spec: ModelSpec, image_size: tuple[int, int], cache: Path, source: Domain | None = None
) -> DomainShift:
    """Measure the distance of a domain's training images from the data that a model was pretrained on.

    Args:
        domain: the target.
        spec: the pretrained model.
        image_size: the network's input, height and width.
        cache: folder in which a bundled dataset is written.
        source: the domain that the model was trained on, if its images are available.

    Raises:
        ToolchainError: no pretrained weights, a folder that training would reject, or too few readable images.
    """
    if not spec.weights:
        raise ToolchainError(
            f"{spec.name} has no pretrained weights to measure a distance from; give some with --weights file"
        )
    spec = published_pixels.resolve_model(spec)
    model, head, _ = build.build_with_new_head(spec, 2, seed=0)
    model.eval()
    target_images = _load_images(domain, prepare.describe_pixels(spec, image_size, domain.mode), cache)
    target = _collect(model, head, target_images, spec)
    source_images = None
    if source:
        source_images = _load_images(source, prepare.describe_pixels(spec, image_size, source.mode), cache)
    known = _collect(model, head, source_images, spec) if source_images is not None else None
    statistics = _statistics_distance(target, model, head, target_images, spec) if target.layers else None
    features = _feature_distance(target.features, known.features) if known else None
    return DomainShift(
        model=spec.name,
        source=source.name if source else "",
        pictures=len(target_images),
        source_pictures=len(source_images) if source_images is not None else 0,
        statistics=statistics,
        spread=float(np.mean([layer.spread for layer in target.layers])) if target.layers else None,
        layers=target.layers,
        features=features,
        text=_describe(domain.name, source.name if source else "", statistics, features),
    )


def _load_images(domain: Domain, preprocess: Preprocessing, cache: Path) -> np.ndarray:
    """Return a random sample of training images as the model sees them: uint8 [images, height, width(, 3)]."""
    files = dataset_files.find_images(domain, cache).files["train"]
    images: list[np.ndarray] = []
    for index in np.random.default_rng(0).permutation(len(files)):
        if len(images) == MAX_IMAGES:
            break
        try:
            images.append(served_pixels.read(files[index], preprocess))
        except run.Refused:  # the checks of the dataset report it
            continue
    if len(images) < MIN_IMAGES:
        raise ToolchainError(
            f"domain {domain.name!r} has {len(images)} readable training images; measuring a distance needs {MIN_IMAGES}"
        )
    return np.stack(images)


def _collect(model: nn.Module, head: str, images: np.ndarray, spec: ModelSpec) -> _Activations:
    """Run the model on uint8 images, and collect the head's input and the statistics of every batch norm's input."""
    sums: dict[str, list[Tensor]] = {}
    features: list[Tensor] = []
    norms = {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, BatchNorm) and module.running_mean is not None
    }
    handles = [norm.register_forward_pre_hook(partial(_add_sums, sums, name)) for name, norm in norms.items()]
    handles.append(
        model.get_submodule(head).register_forward_pre_hook(lambda _, inputs: features.append(_pool(inputs[0])))
    )
    try:
        with torch.inference_mode(), progress.show_bar("measure distance", len(images)) as bar:
            for start in range(0, len(images), BATCH_SIZE):
                batch = images[start : start + BATCH_SIZE]
                model(torch.from_numpy(run.normalise(batch, spec.mean, spec.std)))
                bar.step(count=len(batch))
    finally:
        for handle in handles:
            handle.remove()
    layers = (_measure_layer(name, norm, sums[name]) for name, norm in norms.items() if name in sums)
    return _Activations(torch.cat(features).clone(), tuple(layer for layer in layers if layer))


def _pool(inputs: Tensor) -> Tensor:
    """Return [images, features]; feature maps, as a convolution as head gets them, are averaged over their positions."""
    return inputs.mean((2, 3)) if inputs.ndim == 4 else inputs.flatten(1)


def _add_sums(sums: dict[str, list[Tensor]], name: str, _: nn.Module, inputs: tuple[Any, ...]) -> None:
    """Add a batch to `sums[name]`: per channel the sum, the sum of squares and the number of values."""
    x = inputs[0].double().transpose(0, 1).flatten(1)  # [channels, everything else]
    batch = [x.sum(1), x.square().sum(1), torch.full((len(x),), float(x.shape[1]))]
    sums[name] = [a + b for a, b in zip(sums[name], batch, strict=True)] if name in sums else batch


def _measure_layer(name: str, norm: nn.Module, sums: Sequence[Tensor]) -> LayerShift | None:
    """Compare the input of a batch norm with its running statistics, over the channels that are active in the source."""
    assert isinstance(norm, BatchNorm)
    assert norm.running_mean is not None
    assert norm.running_var is not None
    total, squares, count = sums
    mean = total / count
    variance = (squares / count - mean.square()).clamp_min(0)
    source_mean, source_variance = norm.running_mean.double(), norm.running_var.double()
    active = source_variance > MIN_SOURCE_VARIANCE
    if not active.any():
        return None
    mean_shift = (mean - source_mean).abs() / source_variance.sqrt()
    log_ratio = ((variance + norm.eps) / (source_variance + norm.eps)).log().abs()
    return LayerShift(name=name, mean=float(mean_shift[active].mean()), spread=float(log_ratio[active].mean()))


def _statistics_distance(
    target: _Activations, model: nn.Module, head: str, images: np.ndarray, spec: ModelSpec
) -> CalibratedDistance:
    """Return the shift of the statistics. References: no shift at all, and the same images with shuffled pixels.

    Shuffled images keep their colours and lose every shape that a network could know.
    """
    flat = images.reshape(len(images), -1, *images.shape[3:])
    order = np.random.default_rng(0).permutation(flat.shape[1])
    shuffled = _collect(model, head, np.ascontiguousarray(flat[:, order].reshape(images.shape)), spec)
    return CalibratedDistance(value=_mean_shift(target.layers), lowest=0.0, highest=_mean_shift(shuffled.layers))


def _mean_shift(layers: Sequence[LayerShift]) -> float:
    return float(np.mean([layer.mean for layer in layers]))


def _feature_distance(target: Tensor, source: Tensor) -> CalibratedDistance:
    """Return the proxy A-distance of two domains' features. Lower reference: between two halves of the target itself."""
    return CalibratedDistance(
        value=proxy_a_distance(target, source), lowest=proxy_a_distance(target[::2], target[1::2]), highest=2.0
    )


def _describe(
    name: str, source: str, statistics: CalibratedDistance | None, features: CalibratedDistance | None
) -> str:
    """Say what the distances mean, and what follows from them for fine-tuning."""
    sentences = []
    if features:
        accuracy = 0.5 + features.value / 4
        sentences.append(
            f"{name} is {features.verdict} from {source}: a linear classifier on the pretrained features tells the two "
            f"apart {accuracy:.0%} of the time (proxy A-distance {features.value:.2f} of 2; between two halves of {name}: "
            f"{features.lowest:.2f})."
        )
    if statistics:
        sentences.append(
            f"{name} is {statistics.verdict} from the data that the model was trained on: its activations are "
            f"{statistics.value:.2f} standard deviations off batch norm's running means, against {statistics.highest:.2f} "
            "for the same images with shuffled pixels."
        )
    if not sentences:
        return (
            "The distance cannot be measured: the model has no batch norm, and no source domain is given. Name one with "
            "--source."
        )
    advice = {
        "far": "Fine-tune all layers, and expect to need more images.",
        "near": "Little needs to change in the backbone.",
    }
    verdicts = {distance.verdict for distance in (features, statistics) if distance}
    if len(verdicts) == 1:
        sentences.append(advice.get(verdicts.pop(), ""))
    return " ".join(sentences).strip()
