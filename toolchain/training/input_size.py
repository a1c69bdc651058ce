"""resize: job, input size -> the same job with smaller pictures, whose teacher goes on seeing them at its own size."""

import dataclasses
from pathlib import Path

import torch.nn.functional as F
from torch import Tensor, nn

from toolchain.data import decoded_dataset
from toolchain.training.finetune import FinetunedModel

SIDE_SHARES = (5 / 6, 2 / 3, 1 / 2)  # of each side
SIDE_MULTIPLE = 8  # sides are multiples of it


class UpsampledInputModel(nn.Module):
    """A model that is given smaller pictures than it was trained on."""

    def __init__(self, model: nn.Module, size: tuple[int, int]) -> None:
        super().__init__()
        self.model, self.size = model, size

    def forward(self, x: Tensor) -> Tensor:
        """Pictures of any size -> logits."""
        answer: Tensor = self.model(F.interpolate(x, self.size, mode="bilinear", antialias=True))
        return answer


def list_smaller_sizes(whole: tuple[int, int], least: float) -> list[tuple[int, int]]:
    """Smaller input sizes, height and width, down to a share of each side; the largest first."""
    found = []
    for share in SIDE_SHARES:
        height, width = (round(side * share / SIDE_MULTIPLE) * SIDE_MULTIPLE for side in whole)
        if all(least * side <= small < side for small, side in zip((height, width), whole, strict=True)):
            found.append((height, width))
    return list(dict.fromkeys(found))


def resize_inputs(adapted: FinetunedModel, size: tuple[int, int], cache: Path) -> FinetunedModel:
    """The job at another input size; the same job where the size is its own.

    Args:
        adapted: the dense model, which stays as it is and becomes the teacher.
        size: height, width.
        cache: folder of decoded pixels.

    Raises:
        ToolchainError: a picture cannot be read any more.
    """
    own = adapted.dataset.preprocess.image_size
    if tuple(size) == tuple(own):
        return adapted
    teacher = dataclasses.replace(adapted.trained, model=UpsampledInputModel(adapted.trained.model, own))
    return dataclasses.replace(
        adapted, trained=teacher, dataset=decoded_dataset.decode_at_size(adapted.dataset, size, cache)
    )
