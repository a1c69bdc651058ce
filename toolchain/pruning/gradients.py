"""Gradients of the loss by parameter, for pruning criteria that ask what the loss would lose and not how large weights are.

Taken image by image. A batch's gradient is a mean in which the images cancel: its square says next to nothing of the
Fisher information, which is about single answers, and comes out smaller the larger the batch. The mean gradient is the
same either way, because batch norm runs in its inference form, where images do not see one another.
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
    """How the cross-entropy reacts to one parameter, in the parameter's own shape, float32."""

    mean: Tensor  # over the images
    mean_square: Tensor  # mean over the images of each one's squared gradient: the diagonal of the empirical Fisher


def collect(model: nn.Module, batches: Sequence[tuple[Tensor, Tensor]]) -> Mapping[str, GradientMoments]:
    """Gradients of the mean cross-entropy by parameter name, frozen parameters among them.

    Works on a copy in inference form: statistics of batch norm, modes and gradients of `model` stay as they are.

    Args:
        model: gives logits [images, classes].
        batches: float32 images [batch, 3, height, width] with int64 labels [batch]; how they are batched changes nothing.

    Raises:
        ToolchainError: there are no images, or a gradient is not finite.
    """
    count = sum(len(labels) for _, labels in batches)
    if not count:
        raise ToolchainError("no images to take gradients on; give the domain at least one calibration image")
    model = copy.deepcopy(model).eval().requires_grad_(True)
    names = dict(model.named_parameters(remove_duplicate=False))
    parameters = list(dict.fromkeys(names.values()))  # once each, where modules share one
    sums = [torch.zeros_like(parameter.detach()) for parameter in parameters]
    squares = [torch.zeros_like(parameter.detach()) for parameter in parameters]
    with progress.show_bar("gradients", count) as bar, torch.enable_grad():
        for images, labels in batches:
            for image, label in zip(images, labels, strict=True):
                loss = F.cross_entropy(model(image[None]), label[None])
                found = torch.autograd.grad(loss, parameters, allow_unused=True)  # auxiliary heads are not used here
                for gradient, total, square in zip(found, sums, squares, strict=True):
                    if gradient is not None:
                        total += gradient
                        square.addcmul_(gradient, gradient)
                bar.step()
    done = {p: GradientMoments(a / count, b / count) for p, a, b in zip(parameters, sums, squares, strict=True)}
    return {name: _finite(name, done[parameter]) for name, parameter in names.items()}


def _finite(name: str, gradient: GradientMoments) -> GradientMoments:
    if not gradient.mean_square.isfinite().all():
        raise ToolchainError(
            f"the gradient of {name} is not finite, so no channel can be ranked by it; train with a lower learning_rate "
            'or choose a criterion that looks at weights only ([prune] criterion = "magnitude")'
        )
    return gradient
