"""A linear probe: logistic regression on the features that a frozen backbone gives to its head.

It is the baseline that fine-tuning has to beat, and the head that fine-tuning can start from: the first gradients of a
randomly initialized head would damage the features below it (Kumar et al., arXiv 2202.10054).
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

L2_STRENGTHS = (1e-4, 1e-3, 1e-2, 1e-1)  # candidates for the penalty on the weights; validation chooses
MAX_LBFGS_STEPS = 100  # L-BFGS stops sooner once it has converged


@dataclass(frozen=True)
class LinearProbe:
    """A linear classifier on features, and its score on validation."""

    weight: Tensor  # [classes, features]
    bias: Tensor  # [classes]
    validation_score: Score
    l2_strength: float


def extract_features(model: nn.Module, head: str, images: Images, preprocess: Preprocessing) -> Tensor:
    """Return the input of the layer `head` for each image, feature maps averaged over space: float32 [images, features]."""
    features: list[Tensor] = []

    def record(_: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        features.append(pool_features(inputs[0]))

    handle = model.get_submodule(head).register_forward_pre_hook(record)
    set_mode(model, training=False)
    try:
        with torch.inference_mode():
            for batch, _ in ordered_batches(images, preprocess, EVALUATION_BATCH_SIZE):
                model(batch)
    finally:
        handle.remove()
    return torch.cat(features).clone()


def pool_features(activation: Tensor) -> Tensor:
    """Return [images, features] of an activation: a feature map is averaged over space, anything else is flattened."""
    return activation.mean((2, 3)) if activation.ndim == 4 else activation.flatten(1)


def fit_frozen(train: FrozenFeatures, held: FrozenFeatures) -> tuple[LinearProbe, Tensor]:
    """Fit a probe on stored features of a frozen model.

    Args:
        train: features and labels to fit to.
        held: features and labels that choose the penalty.

    Returns:
        The probe, and for each image of `held` whether it is predicted correctly, bool [images].
    """
    train_features, held_features = (torch.from_numpy(split.features).float() for split in (train, held))
    train_labels, held_labels = torch.from_numpy(train.labels), torch.from_numpy(held.labels)
    classes = int(max(train_labels.max(), held_labels.max())) + 1
    probe = fit_to_features(train_features, train_labels, held_features, held_labels, classes)
    return probe, (held_features @ probe.weight.T + probe.bias).argmax(1) == held_labels


def fit(
    model: nn.Module, head: str, data: Dataset, balance: float = 0.0, mirrors: Sequence[Sequence[int]] = ()
) -> LinearProbe:
    """Fit a probe in place of the layer `head` on the training images; validation chooses the strength of the penalty.

    Args:
        model: the network; its weights are left as they were.
        head: name of the layer whose input the probe reads.
        data: the dataset.
        balance: what validation scores, from accuracy (0) to balanced accuracy (1), as in `Recipe.balance`.
        mirrors: one flipped copy of the training images for each entry, along these dimensions: 1 upside down, 2 left to
            right.
    """
    train, validation = _add_mirrored(data.splits["train"], mirrors), data.splits["val"]
    train_features = extract_features(model, head, train, data.preprocess)
    validation_features = extract_features(model, head, validation, data.preprocess)
    return fit_to_features(
        train_features, train.labels, validation_features, validation.labels, len(data.classes), train.loss_weights, balance
    )  # fmt: skip


def fit_to_features(
    train_features: Tensor, train_labels: Tensor, held_features: Tensor, held_labels: Tensor, classes: int,
    weights: Tensor | None = None, balance: float = 0.0,
) -> LinearProbe:  # fmt: skip
    """Fit a probe to features that are already extracted; the held-out split chooses the strength of the penalty.

    Args:
        train_features: float32 [images, features].
        train_labels: int64 [images].
        held_features: float32 [held-out images, features].
        held_labels: int64 [held-out images].
        classes: number of classes.
        weights: loss weight of each training image, [images]; None: all equal.
        balance: as in `fit`.
    """
    weights = torch.ones(len(train_labels)) if weights is None else weights
    mean, deviation = train_features.mean(0), train_features.std(0).clamp_min(1e-6)
    counts = torch.bincount(train_labels, weights=weights, minlength=classes).float().clamp_min(1)
    logit_shift, probes = balance * (counts / counts.sum()).log(), list[LinearProbe]()
    for strength in L2_STRENGTHS:
        weight, bias = _regression((train_features - mean) / deviation, train_labels, weights, logit_shift, strength)
        weight = weight / deviation  # fold the normalization in, so that the probe reads the features as they are
        bias = bias - weight @ mean
        validated = score(held_features @ weight.T + bias, held_labels, balance)
        probes.append(LinearProbe(weight, bias, validated, strength))
    return max(probes, key=lambda probe: probe.validation_score)


def _add_mirrored(images: Images, mirrors: Sequence[Sequence[int]]) -> Images:
    if not mirrors:
        return images
    copies = [images.pixels, *(images.pixels.flip(tuple(dimensions)) for dimensions in mirrors)]
    count = len(copies)
    return Images(
        torch.cat(copies), images.labels.repeat(count), images.files * count, images.loss_weights.repeat(count)
    )


def _regression(
    features: Tensor, labels: Tensor, weights: Tensor, logit_shift: Tensor, strength: float
) -> tuple[Tensor, Tensor]:
    """Return weight [classes, features] and bias [classes] of an L2-penalized logistic regression, by L-BFGS."""
    weight = torch.zeros(len(logit_shift), features.shape[1], requires_grad=True)
    bias = torch.zeros(len(logit_shift), requires_grad=True)
    solver = torch.optim.LBFGS([weight, bias], max_iter=MAX_LBFGS_STEPS, line_search_fn="strong_wolfe")
    shares = weights / weights.sum()

    def closure() -> float:
        solver.zero_grad()
        losses = F.cross_entropy(features @ weight.T + bias + logit_shift, labels, reduction="none")
        loss = (losses * shares).sum() + strength * weight.square().sum()
        loss.backward()  # type: ignore[no-untyped-call]
        return loss.item()

    solver.step(closure)  # type: ignore[no-untyped-call]
    return weight.detach(), bias.detach()


def install(probe: LinearProbe, model: nn.Module, head: str) -> None:
    """Copy the probe's weights into the model's head, a linear layer."""
    layer = model.get_submodule(head)
    assert isinstance(layer, nn.Linear)
    with torch.no_grad():
        layer.weight.copy_(probe.weight)
        layer.bias.copy_(probe.bias)
