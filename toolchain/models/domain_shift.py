"""How far a domain lies from the pictures that a pretrained model knows.

Without those pictures: batch norm's running statistics describe the data it was trained on, so the target's own
statistics at the same places tell the distance (Li et al., "Revisiting Batch Normalization for Practical Domain
Adaptation", arXiv 1603.04779). With them: the proxy A-distance 2 (1 - 2 error) of a linear classifier that tells the
two domains apart by the backbone's features (Ben-David et al., "Analysis of Representations for Domain Adaptation",
NIPS 2006). No such number means anything alone: each stands beside a yardstick measured with the same model.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from toolchain.config.dataset import Domain
from toolchain.config.recipe import ModelSpec
from toolchain.core import progress
from toolchain.core.errors import ToolchainError
from toolchain.data import image_folder
from toolchain.edge import run as runner
from toolchain.models import build

MAX_IMAGES = 256  # pictures a side
MIN_IMAGES = 20  # a side, to say anything
BATCH_SIZE = 32
FOLDS = 5
WEIGHT_PENALTY = 1e-2  # on the classifier's weights; features are standardised
MIN_SOURCE_VARIANCE = (
    1e-6  # running variance of a channel that the source never used: any distance over it is meaningless
)
# of the way from the lower to the upper yardstick. From ImageNet, by the statistics of a MobileNetV2, photos of waste
# (TrashNet) came out at 0.49 and thermal pictures of solar modules at 1.00.
NEAR_BELOW, FAR_ABOVE = 0.4, 0.8
BatchNorm = nn.modules.batchnorm._BatchNorm


@dataclass(frozen=True, kw_only=True)
class CalibratedDistance:
    """A figure between two yardsticks measured in the same way."""

    value: float
    lowest: float  # what the same measurement gives where there is no shift
    highest: float  # and where nothing is in common

    @property
    def relative(self) -> float:
        """How much of the way from the lower to the upper yardstick, 0 to 1."""
        way = (self.value - self.lowest) / max(self.highest - self.lowest, 1e-9)
        return min(1.0, max(0.0, way))

    @property
    def verdict(self) -> str:
        """Near, some way off, or far."""
        return "near" if self.relative < NEAR_BELOW else "far" if self.relative > FAR_ABOVE else "some way off"


@dataclass(frozen=True, kw_only=True)
class LayerShift:
    """One batch norm: means over its channels."""

    name: str
    mean: float  # |target's mean - source's mean| in standard deviations of the source
    spread: float  # |ln(target's variance / source's variance)|


@dataclass(frozen=True, kw_only=True)
class DomainShift:
    """How far a domain lies from what a model knows."""

    model: str
    source: str  # the source domain's name; "" where only the model is known
    pictures: int
    source_pictures: int
    statistics: CalibratedDistance | None  # mean over layers of `LayerShift.mean`; None: the model has no batch norm
    spread: float | None  # mean over layers of `LayerShift.spread`
    layers: tuple[LayerShift, ...]
    features: CalibratedDistance | None  # proxy A-distance, 0 to 2; None without a source domain
    text: str


@dataclass(frozen=True, eq=False)
class _Seen:
    """What a model made of some pictures."""

    features: Tensor  # float32 [pictures, features]
    layers: tuple[LayerShift, ...]


def measure(
    domain: Domain, recipe_model: ModelSpec, image_size: tuple[int, int], cache: Path, source: Domain | None = None
) -> DomainShift:
    """Measures the distance of a domain's training pictures, and of a source domain's if there is one.

    Raises:
        ToolchainError: no pretrained weights, a folder that training would refuse, or too few readable pictures.
    """
    if not recipe_model.weights:
        raise ToolchainError(
            f"{recipe_model.name} has no pretrained weights to measure a distance from; give some with --weights file"
        )
    model, head, _ = build.build_with_new_head(recipe_model, 2, seed=0)
    model.eval()
    target = _pictures(domain, image_size, cache)
    seen = _see(model, head, target, recipe_model)
    other = _pictures(source, image_size, cache) if source else None
    known = _see(model, head, other, recipe_model) if other is not None else None
    statistics = _statistics(seen, model, head, target, recipe_model) if seen.layers else None
    features = _features(seen.features, known.features) if known else None
    return DomainShift(
        model=recipe_model.name,
        source=source.name if source else "",
        pictures=len(target),
        source_pictures=len(other) if other is not None else 0,
        statistics=statistics,
        spread=float(np.mean([layer.spread for layer in seen.layers])) if seen.layers else None,
        layers=seen.layers,
        features=features,
        text=_text(domain.name, source.name if source else "", statistics, features),
    )


def _pictures(domain: Domain, image_size: tuple[int, int], cache: Path) -> np.ndarray:
    """Drawn training pictures as the network's size has them: uint8 [n, height, width] or [n, height, width, 3]."""
    files = image_folder.find_images(domain, cache).files["train"]
    found: list[np.ndarray] = []
    for index in np.random.default_rng(0).permutation(len(files)):
        if len(found) == MAX_IMAGES:
            break
        try:
            found.append(runner.fit_size(runner.read_picture(files[index], domain.mode), image_size))
        except runner.Refused:  # named by the examination
            continue
    if len(found) < MIN_IMAGES:
        raise ToolchainError(
            f"domain {domain.name!r} has {len(found)} readable training pictures; to measure a distance takes {MIN_IMAGES}"
        )
    return np.stack(found)


def _see(model: nn.Module, head: str, pictures: np.ndarray, spec: ModelSpec) -> _Seen:
    """Features before the head, and the statistics before every batch norm, of uint8 pictures."""
    sums: dict[str, list[Tensor]] = {}
    features: list[Tensor] = []
    norms = {n: m for n, m in model.named_modules() if isinstance(m, BatchNorm) and m.running_mean is not None}
    handles = [norm.register_forward_pre_hook(partial(_add, sums, name)) for name, norm in norms.items()]
    handles.append(
        model.get_submodule(head).register_forward_pre_hook(lambda _, given: features.append(_pooled(given[0])))
    )
    try:
        with torch.inference_mode(), progress.show_bar("measure distance", len(pictures)) as bar:
            for start in range(0, len(pictures), BATCH_SIZE):
                part = pictures[start : start + BATCH_SIZE]
                model(torch.from_numpy(runner.normalise(part, spec.mean, spec.std)))
                bar.step(count=len(part))
    finally:
        for handle in handles:
            handle.remove()
    layers = (_layer(name, norm, sums[name]) for name, norm in norms.items() if name in sums)
    return _Seen(torch.cat(features).clone(), tuple(layer for layer in layers if layer))


def _pooled(given: Tensor) -> Tensor:
    """A head that is a convolution is given maps: their means are its features."""
    return given.mean((2, 3)) if given.ndim == 4 else given.flatten(1)


def _add(sums: dict[str, list[Tensor]], name: str, _: nn.Module, given: tuple[Any, ...]) -> None:
    x = given[0].double().transpose(0, 1).flatten(1)  # [channels, everything else]
    now = [x.sum(1), x.square().sum(1), torch.full((len(x),), float(x.shape[1]))]
    sums[name] = [a + b for a, b in zip(sums[name], now, strict=True)] if name in sums else now


def _layer(name: str, norm: nn.Module, sums: Sequence[Tensor]) -> LayerShift | None:
    """Distances of one batch norm's input from its running statistics, over the channels that the source used."""
    assert isinstance(norm, BatchNorm)
    assert norm.running_mean is not None
    assert norm.running_var is not None
    total, squares, count = sums
    mean = total / count
    variance = (squares / count - mean.square()).clamp_min(0)
    source_mean, source_variance = norm.running_mean.double(), norm.running_var.double()
    alive = source_variance > MIN_SOURCE_VARIANCE
    if not alive.any():
        return None
    moved = (mean - source_mean).abs() / source_variance.sqrt()
    wider = ((variance + norm.eps) / (source_variance + norm.eps)).log().abs()
    return LayerShift(name=name, mean=float(moved[alive].mean()), spread=float(wider[alive].mean()))


def _statistics(seen: _Seen, model: nn.Module, head: str, pictures: np.ndarray, spec: ModelSpec) -> CalibratedDistance:
    """The shift of the statistics. Yardsticks: none at all, and the same pictures with their pixels in any order.

    Scrambled pictures keep their colours and lose every shape that a network could know.
    """
    flat = pictures.reshape(len(pictures), -1, *pictures.shape[3:])
    order = np.random.default_rng(0).permutation(flat.shape[1])
    scrambled = _see(model, head, np.ascontiguousarray(flat[:, order].reshape(pictures.shape)), spec)
    return CalibratedDistance(value=_mean(seen.layers), lowest=0.0, highest=_mean(scrambled.layers))


def _mean(layers: Sequence[LayerShift]) -> float:
    return float(np.mean([layer.mean for layer in layers]))


def _features(target: Tensor, source: Tensor) -> CalibratedDistance:
    """Proxy A-distance between two domains' features. Lower yardstick: between two halves of the target itself."""
    return CalibratedDistance(
        value=proxy_a_distance(target, source), lowest=proxy_a_distance(target[::2], target[1::2]), highest=2.0
    )


def proxy_a_distance(first: Tensor, second: Tensor) -> float:
    """2 (1 - 2 error) of a linear classifier, cross-validated; both sides weigh the same. 0 alike, 2 fully apart."""
    x = torch.cat([first, second]).double()
    y = torch.cat([torch.zeros(len(first)), torch.ones(len(second))]).double()
    fold = torch.empty(len(x), dtype=torch.long)
    random = torch.Generator().manual_seed(0)
    for side in (y == 0, y == 1):
        count = int(side.sum())
        fold[side] = torch.arange(count)[torch.randperm(count, generator=random)] % FOLDS
    answers = torch.empty_like(y)
    for number in range(FOLDS):
        known, held = fold != number, fold == number
        answers[held] = _classified(x[known], y[known], x[held])
    wrong = (answers > 0) != (y > 0)
    error = (wrong[y == 0].double().mean() + wrong[y == 1].double().mean()) / 2
    return 2 * (1 - 2 * min(float(error), 0.5))


def _classified(x: Tensor, y: Tensor, held: Tensor) -> Tensor:
    """Scores of held-out pictures by logistic regression; positive: the second domain."""
    mean, deviation = x.mean(0), x.std(0).clamp_min(1e-6)
    x, held = (x - mean) / deviation, (held - mean) / deviation
    weights = torch.zeros(x.shape[1] + 1, dtype=torch.double, requires_grad=True)
    solver = torch.optim.LBFGS([weights], max_iter=100, line_search_fn="strong_wolfe")
    balance = torch.where(y > 0, 1 / y.sum(), 1 / (1 - y).sum()) / 2

    def closure() -> float:
        solver.zero_grad()
        each = F.binary_cross_entropy_with_logits(x @ weights[1:] + weights[0], y, reduction="none")
        loss = (each * balance).sum() + WEIGHT_PENALTY * weights[1:].square().sum()
        loss.backward()  # type: ignore[no-untyped-call]
        return loss.item()

    solver.step(closure)  # type: ignore[no-untyped-call]
    return (held @ weights[1:] + weights[0]).detach()


def _text(name: str, source: str, statistics: CalibratedDistance | None, features: CalibratedDistance | None) -> str:
    """What the figures mean, and what follows."""
    said = []
    if features:
        right = 0.5 + features.value / 4
        said.append(
            f"{name} is {features.verdict} from {source}: a linear classifier on the pretrained features tells the two "
            f"apart {right:.0%} of the time (proxy A-distance {features.value:.2f} of 2; two halves of {name}: "
            f"{features.lowest:.2f})."
        )
    if statistics:
        said.append(
            f"{name} is {statistics.verdict} from what the model was trained on: its activations lie {statistics.value:.2f} "
            f"standard deviations off batch norm's running means; its own pictures with all pixels scrambled, "
            f"{statistics.highest:.2f}."
        )
    if not said:
        return "The model has no batch norm and no source domain was given, so there is nothing to measure against."
    words = {distance.verdict for distance in (features, statistics) if distance}
    advice = {
        "far": "Fine-tune all layers, and count on more pictures.",
        "near": "Little needs to change in the backbone.",
    }
    return " ".join([*said, advice.get(words.pop(), "") if len(words) == 1 else ""]).strip()
