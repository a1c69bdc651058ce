"""Smaller input sizes: which ones to try, and how to train at one of them.

Images are decoded anew at the smaller size. The dense model stays as it is and becomes the teacher: it upsamples its
input to the size that it was trained at.
"""

import dataclasses
from pathlib import Path

import torch.nn.functional as F
from torch import Tensor, nn

from toolchain.data import decoded_dataset
from toolchain.training.finetune import FinetunedModel

SIDE_SHARES = (5 / 6, 2 / 3, 1 / 2)  # of each side
SIDE_MULTIPLE = 8  # sides are multiples of it


class UpsampledInputModel(nn.Module):
    """A model that resizes its input to the size it was trained at."""

    def __init__(self, model: nn.Module, size: tuple[int, int]) -> None:
        """Wrap `model`, trained at `size` (height, width)."""
        super().__init__()
        self.model, self.size = model, size

    def forward(self, x: Tensor) -> Tensor:
        """Return logits [images, classes] for images [images, 3, height, width] of any size."""
        logits: Tensor = self.model(F.interpolate(x, self.size, mode="bilinear", antialias=True))
        return logits


def list_smaller_sizes(whole: tuple[int, int], least: float) -> list[tuple[int, int]]:
    """Return the smaller input sizes to try, (height, width), the largest first.

    Args:
        whole: height and width of the dense model's input.
        least: smallest share of each side that is allowed, 0..1.
    """
    sizes = []
    for share in SIDE_SHARES:
        height, width = (round(side * share / SIDE_MULTIPLE) * SIDE_MULTIPLE for side in whole)
        if all(least * side <= small < side for small, side in zip((height, width), whole, strict=True)):
            sizes.append((height, width))
    return list(dict.fromkeys(sizes))


def resize_inputs(finetuned: FinetunedModel, size: tuple[int, int], cache: Path) -> FinetunedModel:
    """Return the fine-tuned model and its dataset at another input size; `finetuned` itself where the size is the same.

    Args:
        finetuned: the dense model, which is left as it was, and its dataset.
        size: height and width, pixels.
        cache: folder of decoded images.

    Raises:
        ToolchainError: an image can no longer be read.
    """
    trained_size = finetuned.dataset.preprocess.image_size
    if tuple(size) == tuple(trained_size):
        return finetuned
    teacher = dataclasses.replace(finetuned.trained, model=UpsampledInputModel(finetuned.trained.model, trained_size))
    return dataclasses.replace(
        finetuned, trained=teacher, dataset=decoded_dataset.decode_at_size(finetuned.dataset, size, cache)
    )
