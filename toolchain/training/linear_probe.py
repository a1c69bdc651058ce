"""A linear probe: logistic regression on what the frozen backbone hands to its head.

It is the honest yardstick of transfer learning, and the head that fine-tuning starts from: a random head's first
gradients would spoil the features below it (Kumar et al., arXiv 2202.10054).
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from toolchain.core.types import Preprocessing
from toolchain.data.decoded_dataset import Dataset, Images
from toolchain.data.loader import ordered_batches
from toolchain.models.frozen_features import FrozenFeatures
from toolchain.training.loop import EVALUATION_BATCH_SIZE, score, set_mode
from toolchain.training.training_state import Score

L2_STRENGTHS = (1e-4, 1e-3, 1e-2, 1e-1)  # of the penalty on the weights; validation decides
MAX_LBFGS_STEPS = 100  # of L-BFGS, which ends sooner where it has converged


@dataclass(frozen=True)
class LinearProbe:
    """A linear classifier on features, and how good it is on validation."""

    weight: Tensor  # [classes, features]
    bias: Tensor  # [classes]
    validation_score: Score
    l2_strength: float


def extract_features(model: nn.Module, head: str, images: Images, preprocess: Preprocessing) -> Tensor:
    """What the layer `head` is given for each image, a map averaged over its places: float32 [images, features]."""
    seen: list[Tensor] = []

    def note(_: nn.Module, given: tuple[Tensor, ...]) -> None:
        seen.append(pool_features(given[0]))

    handle = model.get_submodule(head).register_forward_pre_hook(note)
    set_mode(model, training=False)
    try:
        with torch.inference_mode():
            for batch, _ in ordered_batches(images, preprocess, EVALUATION_BATCH_SIZE):
                model(batch)
    finally:
        handle.remove()
    return torch.cat(seen).clone()


def pool_features(found: Tensor) -> Tensor:
    """Features [images, features] of what a layer is given or gives; a map is averaged over its places."""
    return found.mean((2, 3)) if found.ndim == 4 else found.flatten(1)


def fit_frozen(train: FrozenFeatures, held: FrozenFeatures) -> tuple[LinearProbe, Tensor]:
    """The probe on what a frozen model was seen to make of the images, and which of `held` it gets right: bool [images]."""
    known, other = (torch.from_numpy(seen.features).float() for seen in (train, held))
    labels, wanted = torch.from_numpy(train.labels), torch.from_numpy(held.labels)
    found = fit_to_features(known, labels, other, wanted, int(max(labels.max(), wanted.max())) + 1)
    return found, (other @ found.weight.T + found.bias).argmax(1) == wanted


def fit(
    model: nn.Module, head: str, data: Dataset, balance: float = 0.0, mirrors: Sequence[Sequence[int]] = ()
) -> LinearProbe:
    """The best of a few penalties by validation, aimed at accuracy or balanced accuracy as `Recipe.balance` says.

    Args:
        mirrors: dimensions along which further copies of the training images are flipped: 1 upside down, 2 left to right.
    """
    train, held = _with_mirrored(data.splits["train"], mirrors), data.splits["val"]
    known = extract_features(model, head, train, data.preprocess)
    other = extract_features(model, head, held, data.preprocess)
    return fit_to_features(known, train.labels, other, held.labels, len(data.classes), train.loss_weights, balance)


def fit_to_features(
    known: Tensor, labels: Tensor, other: Tensor, wanted: Tensor, classes: int, weights: Tensor | None = None,
    balance: float = 0.0,
) -> LinearProbe:  # fmt: skip
    """The same on features [images, features] that are there already, for training with `labels`, else with `wanted`.

    Args:
        weights: of training images, [images]; None: all alike.
    """
    weights = torch.ones(len(labels)) if weights is None else weights
    mean, deviation = known.mean(0), known.std(0).clamp_min(1e-6)
    counts = torch.bincount(labels, weights=weights, minlength=classes).float().clamp_min(1)
    shift, found = balance * (counts / counts.sum()).log(), list[LinearProbe]()
    for strength in L2_STRENGTHS:
        weight, bias = _regression((known - mean) / deviation, labels, weights, shift, strength)
        weight = weight / deviation  # on the features as they are
        bias = bias - weight @ mean
        found.append(LinearProbe(weight, bias, score(other @ weight.T + bias, wanted, balance), strength))
    return max(found, key=lambda one: one.validation_score)


def _with_mirrored(images: Images, mirrors: Sequence[Sequence[int]]) -> Images:
    if not mirrors:
        return images
    copies = [images.pixels, *(images.pixels.flip(tuple(dimensions)) for dimensions in mirrors)]
    count = len(copies)
    return Images(
        torch.cat(copies), images.labels.repeat(count), images.files * count, images.loss_weights.repeat(count)
    )


def _regression(x: Tensor, labels: Tensor, weights: Tensor, shift: Tensor, strength: float) -> tuple[Tensor, Tensor]:
    weight = torch.zeros(len(shift), x.shape[1], requires_grad=True)
    bias = torch.zeros(len(shift), requires_grad=True)
    solver = torch.optim.LBFGS([weight, bias], max_iter=MAX_LBFGS_STEPS, line_search_fn="strong_wolfe")
    shares = weights / weights.sum()

    def closure() -> float:
        solver.zero_grad()
        each = F.cross_entropy(x @ weight.T + bias + shift, labels, reduction="none")
        loss = (each * shares).sum() + strength * weight.square().sum()
        loss.backward()  # type: ignore[no-untyped-call]
        return loss.item()

    solver.step(closure)  # type: ignore[no-untyped-call]
    return weight.detach(), bias.detach()


def install(probe: LinearProbe, model: nn.Module, head: str) -> None:
    """Makes the probe the model's head, a linear layer."""
    layer = model.get_submodule(head)
    assert isinstance(layer, nn.Linear)
    with torch.no_grad():
        layer.weight.copy_(probe.weight)
        layer.bias.copy_(probe.bias)
