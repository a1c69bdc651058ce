"""Augment training images, a whole batch at a time, as suits the kind of image and the size of the dataset.

Every batch has its own random generator, so that batches made ahead in any number of threads are the same. This rules
out torchvision's transforms: they use the global generator, which dropout shares, and change one image at a time
(docs/results.md has the cost). The tests compare the arithmetic with torchvision's.
"""

import dataclasses
import math
from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor

from toolchain.config.dataset import ImageKind
from toolchain.config.recipe import AugmentSpec
from toolchain.core.errors import ToolchainError

# changes that keep an image of this kind in its class, at the strength that a few dozen images per class need
AUTO_BY_KIND: Mapping[ImageKind, AugmentSpec] = {
    "photo": AugmentSpec(
        horizontal_flip=True, crop=0.35, rotate_degrees=15, brightness=0.15, saturation=0.2, mixup=0.1, erase=0.2
    ),
    "overhead": AugmentSpec(
        horizontal_flip=True,
        vertical_flip=True,
        crop=0.35,
        rotate_degrees=45,
        brightness=0.15,
        saturation=0.2,
        mixup=0.1,
    ),
    "thermal": AugmentSpec(horizontal_flip=True, shift=0.05, scale=0.1, rotate_degrees=5, mixup=0.1, erase=0.1),
    "text": AugmentSpec(shift=0.08, scale=0.1, rotate_degrees=8, brightness=0.15),
}
FORBIDDEN_BY_KIND: Mapping[ImageKind, Mapping[str, str]] = {
    "thermal": dict.fromkeys(("brightness", "saturation"), "a gray value of a thermal image is a temperature"),
    "text": dict.fromkeys(("horizontal_flip", "vertical_flip"), "a mirrored character is another character, or none"),
}
NO_AUGMENTATION = AugmentSpec(
    horizontal_flip=False, vertical_flip=False, shift=0.0, scale=0.0, crop=0.0, rotate_degrees=0.0, brightness=0.0,
    saturation=0.0, erase=0.0, mixup=0.0, cutmix=0.0,
)  # fmt: skip
# between these numbers of training images per class the strength falls from 1 to MIN_STRENGTH
FEW_IMAGES_PER_CLASS, MANY_IMAGES_PER_CLASS = 100, 1000
MIN_STRENGTH = 0.5
LUMA_WEIGHTS = (0.299, 0.587, 0.114)  # weights of red, green and blue in a gray value (ITU-R BT.601)
MAX_LOG_ASPECT = math.log(4 / 3)  # a crop's aspect ratio lies within 3:4 and 4:3, as is usual for ImageNet


def resolve(spec: AugmentSpec, kind: ImageKind, images_per_class: float) -> AugmentSpec:
    """Return the augmentation to use: the recipe's values; with `auto`, the rest as suits the kind of image.

    Args:
        spec: the recipe's augmentation; None stands for a value that is not given.
        kind: kind of image, from the domain.
        images_per_class: training images per class; with many, automatic augmentation is weaker.

    Raises:
        ToolchainError: the recipe asks for a change that changes the class of such images.
    """
    for name, why in FORBIDDEN_BY_KIND.get(kind, {}).items():
        if getattr(spec, name):
            raise ToolchainError(
                f"augment.{name} = {getattr(spec, name)} does not suit {kind} images: {why}; leave it out, or correct the "
                'kind of image in the domain (kind = "photo")'
            )
    given = {name: value for name, value in vars(spec).items() if value is not None}
    if not spec.auto:
        return dataclasses.replace(NO_AUGMENTATION, **given)
    share = (math.log(max(images_per_class, 1)) - math.log(FEW_IMAGES_PER_CLASS)) / (
        math.log(MANY_IMAGES_PER_CLASS) - math.log(FEW_IMAGES_PER_CLASS)
    )
    strength = 1 - (1 - MIN_STRENGTH) * min(max(share, 0.0), 1.0)
    full = dataclasses.replace(
        NO_AUGMENTATION, **{name: value for name, value in vars(AUTO_BY_KIND[kind]).items() if value is not None}
    )
    scaled = {name: round(value * strength, 3) for name, value in vars(full).items() if isinstance(value, float)}
    return dataclasses.replace(NO_AUGMENTATION, **{**vars(full), **scaled, **given})


def transform(images: Tensor, spec: AugmentSpec, generator: torch.Generator) -> Tensor:
    """Change geometry and light of each image at random, each on its own.

    Edge pixels are repeated where an image is moved. Geometry is a single resampling and light a single matrix product
    per image, because training waits for this wherever it uses all cores itself.

    Args:
        images: float [batch, channels, height, width] in 0..255.
        spec: resolved augmentation.
        generator: of this batch.

    Returns:
        The changed images, of the same shape; `images` is left as it was.
    """
    if spec.shift or spec.scale or spec.rotate_degrees or spec.crop:
        images = _resample(images, spec, generator)
    elif spec.horizontal_flip or spec.vertical_flip:
        images = images.clone()
        for enabled, dimension in ((spec.horizontal_flip, 3), (spec.vertical_flip, 2)):
            flipped = _bernoulli(len(images), 0.5 if enabled else 0.0, generator)
            images[flipped] = images[flipped].flip(dimension)
    if spec.brightness or spec.saturation:
        images = _change_light(images, spec, generator)
    return _erase(images, spec.erase, generator) if spec.erase else images


def _bernoulli(count: int, probability: float, generator: torch.Generator) -> Tensor:
    return torch.rand(count, generator=generator) < probability


def _uniform(count: int, bound: float, generator: torch.Generator) -> Tensor:
    """Draw `count` values between -bound and bound."""
    return (torch.rand(count, generator=generator) * 2 - 1) * bound


def _resample(images: Tensor, spec: AugmentSpec, generator: torch.Generator) -> Tensor:
    """Flip, scale, crop, rotate and shift in one resampling."""
    count = len(images)
    angle = _uniform(count, math.radians(spec.rotate_degrees or 0.0), generator)
    zoom = 1 + _uniform(count, spec.scale or 0.0, generator)
    crop_width = crop_height = torch.ones(count)
    if spec.crop:  # a share of the area, at a random aspect ratio and place (Szegedy et al., arXiv 1409.4842)
        area = 1 - torch.rand(count, generator=generator) * spec.crop
        # clamped so that neither side is longer than the image's
        aspect = (_uniform(count, 1.0, generator) * (-area.log()).clamp(max=MAX_LOG_ASPECT)).exp()
        crop_width, crop_height = (area * aspect).sqrt(), (area / aspect).sqrt()
    # affine_grid's coordinates: -1 to 1 from edge to edge
    shift_x = _uniform(count, 1.0, generator) * (1 - crop_width) + _uniform(count, 2 * (spec.shift or 0.0), generator)
    shift_y = _uniform(count, 1.0, generator) * (1 - crop_height) + _uniform(count, 2 * (spec.shift or 0.0), generator)
    flip_x = 1 - 2.0 * _bernoulli(count, 0.5 * bool(spec.horizontal_flip), generator)
    flip_y = 1 - 2.0 * _bernoulli(count, 0.5 * bool(spec.vertical_flip), generator)
    ratio = images.shape[2] / images.shape[3]
    cos, sin = angle.cos() * zoom, angle.sin() * zoom
    row_x = [cos * crop_width * flip_x, -sin * crop_height * ratio * flip_y, shift_x]
    row_y = [sin * crop_width / ratio * flip_x, cos * crop_height * flip_y, shift_y]
    matrices = torch.stack([*row_x, *row_y], 1).view(-1, 2, 3)
    grid = F.affine_grid(matrices, list(images.shape), align_corners=False)
    return F.grid_sample(images, grid, padding_mode="border", align_corners=False)


def _change_light(images: Tensor, spec: AugmentSpec, generator: torch.Generator) -> Tensor:
    """Change brightness, contrast about the image's mean, and saturation about its gray values."""
    count, channels, height, width = images.shape
    gain = 1 + _uniform(count, spec.brightness or 0.0, generator)
    brightness = _uniform(count, spec.brightness or 0.0, generator) * 127.5
    offset = images.mean((1, 2, 3)) * (1 - gain) + brightness
    pixels = images.permute(0, 2, 3, 1).reshape(count, height * width, channels)
    if channels == 1:
        changed = pixels * gain[:, None, None] + offset[:, None, None]
    else:
        saturation = 1 + _uniform(count, spec.saturation or 0.0, generator)
        gray = torch.tensor(LUMA_WEIGHTS).view(3, 1).expand(3, 3)
        matrix = torch.eye(3) * saturation[:, None, None] + gray * (1 - saturation)[:, None, None]
        matrix = matrix * gain[:, None, None]
        changed = torch.baddbmm(offset[:, None, None].expand(-1, 1, 3), pixels, matrix)
    return changed.clamp_(0, 255).view(count, height, width, channels).permute(0, 3, 1, 2)


def _erase(images: Tensor, probability: float, generator: torch.Generator) -> Tensor:
    """Set a rectangle of 2 to 20 % of the area to the image's mean (Zhong et al., arXiv 1708.04896)."""
    count, _, height, width = images.shape
    area = 0.02 + 0.18 * torch.rand(count, generator=generator)
    aspect = _uniform(count, math.log(3), generator).exp()
    heights = ((area * aspect).sqrt().clamp(max=1) * height).round().int().tolist()
    widths = ((area / aspect).sqrt().clamp(max=1) * width).round().int().tolist()
    places = torch.rand(count, 2, generator=generator).tolist()
    images = images.clone()
    for row in torch.nonzero(_bernoulli(count, probability, generator)).ravel().tolist():
        top, left = round(places[row][0] * (height - heights[row])), round(places[row][1] * (width - widths[row]))
        images[row, :, top : top + heights[row], left : left + widths[row]] = images[row].mean()
    return images


def mix(images: Tensor, labels: Tensor, spec: AugmentSpec, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Mix each image and its label with those of its neighbour in the shuffled batch.

    mixup (Zhang et al., arXiv 1710.09412) blends the pixels, cutmix (Yun et al., arXiv 1905.04899) pastes a
    rectangle; with both, each batch gets one of them.

    Args:
        images: float [batch, channels, height, width].
        labels: soft labels, float [batch, classes].
        spec: resolved augmentation.
        generator: of this batch.

    Returns:
        The mixed images and soft labels, of the same shapes.
    """
    if not spec.mixup and not spec.cutmix:
        return images, labels
    use_cutmix = bool(spec.cutmix) and (not spec.mixup or torch.rand((), generator=generator).item() < 0.5)
    share = _beta((spec.cutmix if use_cutmix else spec.mixup) or 1.0, generator)
    neighbours = images.roll(1, 0)
    if use_cutmix:
        height, width = images.shape[2:]
        cut_height, cut_width = round(height * math.sqrt(1 - share)), round(width * math.sqrt(1 - share))
        top = int(torch.randint(height - cut_height + 1, (), generator=generator))
        left = int(torch.randint(width - cut_width + 1, (), generator=generator))
        rectangle = (..., slice(top, top + cut_height), slice(left, left + cut_width))
        images = images.clone()
        images[rectangle] = neighbours[rectangle]
        share = 1 - cut_height * cut_width / (height * width)
    else:
        images = images * share + neighbours * (1 - share)
    return images, labels * share + labels.roll(1, 0) * (1 - share)


def _beta(alpha: float, generator: torch.Generator) -> float:
    """Draw from Beta(alpha, alpha) by Jöhnk's method, which needs nothing but uniform numbers."""
    while True:
        first, second = (torch.rand(2, generator=generator, dtype=torch.float64) ** (1 / alpha)).tolist()
        if 0 < first + second <= 1:
            return float(first / (first + second))
