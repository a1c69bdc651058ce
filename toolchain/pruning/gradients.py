"""Gradients of the loss by parameter, for criteria that rank channels by their effect on the loss.

They are taken image by image. The gradient of a batch is a mean in which the images cancel out: its square says little
about the Fisher information, which is defined for single images, and shrinks as the batch grows. The mean gradient does
not depend on the batch, because batch norm runs in inference mode, where images do not affect each other.
"""

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from toolchain.core import progress
from toolchain.core.errors import ToolchainError


@dataclass(frozen=True)
class GradientMoments:
    """First and second moment of the cross-entropy's gradient, over images: float32, in the parameter's shape."""

    mean: Tensor  # over the images
    mean_square: Tensor  # mean over the images of the squared gradient of each: the diagonal of the empirical Fisher


def collect(model: nn.Module, batches: Sequence[tuple[Tensor, Tensor]]) -> Mapping[str, GradientMoments]:
    """Collect the gradient moments of the cross-entropy by parameter name, frozen parameters included.

    Works on a copy in inference mode: batch-norm statistics, modes and gradients of `model` stay as they are.

    Args:
        model: returns logits [images, classes].
        batches: float32 images [batch, 3, height, width] with int64 labels [batch]; the batch size does not matter.

    Raises:
        ToolchainError: there are no images, or a gradient is not finite.
    """
    count = sum(len(labels) for _, labels in batches)
    if not count:
        raise ToolchainError(
            "there are no images to compute gradients on. Give the domain at least one calibration image"
        )
    model = copy.deepcopy(model).eval().requires_grad_(True)
    names = dict(model.named_parameters(remove_duplicate=False))
    parameters = list(dict.fromkeys(names.values()))  # once each, because modules may share one
    sums = [torch.zeros_like(parameter.detach()) for parameter in parameters]
    squares = [torch.zeros_like(parameter.detach()) for parameter in parameters]
    with progress.show_bar("gradients", count) as bar, torch.enable_grad():
        for images, labels in batches:
            for image, label in zip(images, labels, strict=True):
                loss = F.cross_entropy(model(image[None]), label[None])
                # unused: auxiliary heads take no part in inference mode
                image_gradients = torch.autograd.grad(loss, parameters, allow_unused=True)
                for gradient, total, square in zip(image_gradients, sums, squares, strict=True):
                    if gradient is not None:
                        total += gradient
                        square.addcmul_(gradient, gradient)
                bar.step()
    moments = {
        parameter: GradientMoments(total / count, square / count)
        for parameter, total, square in zip(parameters, sums, squares, strict=True)
    }
    return {name: _check_finite(name, moments[parameter]) for name, parameter in names.items()}


def _check_finite(name: str, moments: GradientMoments) -> GradientMoments:
    if not moments.mean_square.isfinite().all():
        raise ToolchainError(
            f"the gradient of {name} is not finite, so channels cannot be ranked by it. Train with a lower learning_rate, "
            'or use a criterion that reads weights only ([prune] criterion = "magnitude")'
        )
    return moments
