"""Random changes to training pictures, for whole batches at once, chosen by the kind of picture and how many there are.

Every batch has a generator of its own, so batches can be made ahead in any number of threads and still be the same.
That is why these are not torchvision's transforms: those draw from the global generator, which dropout shares, and
work on one picture at a time (docs/results.md has the cost). The tests compare the arithmetic with torchvision's.
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

# what leaves a picture of its kind in its class, at the strength that a few dozen pictures a class need
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
    "thermal": dict.fromkeys(("brightness", "saturation"), "a thermal picture's grey value is a temperature"),
    "text": dict.fromkeys(("horizontal_flip", "vertical_flip"), "a mirrored character is another one or none"),
}
NO_AUGMENTATION = AugmentSpec(
    horizontal_flip=False, vertical_flip=False, shift=0.0, scale=0.0, crop=0.0, rotate_degrees=0.0, brightness=0.0,
    saturation=0.0, erase=0.0, mixup=0.0, cutmix=0.0,
)  # fmt: skip
FEW_IMAGES_PER_CLASS, MANY_IMAGES_PER_CLASS = (
    100,
    1000,
)  # training pictures a class between which the strength falls from full to WEAKEST
MIN_STRENGTH = 0.5
LUMA_WEIGHTS = (0.299, 0.587, 0.114)  # what red, green and blue count in a gray value (ITU-R BT.601)
MAX_LOG_ASPECT = math.log(4 / 3)  # reach of a crop's aspect ratio, as is usual for ImageNet


def resolve(spec: AugmentSpec, kind: ImageKind, images_per_class: float) -> AugmentSpec:
    """What the recipe asks for; with `auto`, what suits the kind of picture, weaker where there are many.

    Raises:
        ToolchainError: the recipe asks for what changes the class of such pictures.
    """
    for name, why in FORBIDDEN_BY_KIND.get(kind, {}).items():
        if getattr(spec, name):
            raise ToolchainError(
                f"augment.{name} = {getattr(spec, name)} does not suit {kind} pictures: {why}; leave it out, or say what "
                'kind of pictures these are (kind = "photo" in the domain)'
            )
    asked = {name: value for name, value in vars(spec).items() if value is not None}
    if not spec.auto:
        return dataclasses.replace(NO_AUGMENTATION, **asked)
    share = (math.log(max(images_per_class, 1)) - math.log(FEW_IMAGES_PER_CLASS)) / (
        math.log(MANY_IMAGES_PER_CLASS) - math.log(FEW_IMAGES_PER_CLASS)
    )
    strength = 1 - (1 - MIN_STRENGTH) * min(max(share, 0.0), 1.0)
    full = dataclasses.replace(
        NO_AUGMENTATION, **{name: value for name, value in vars(AUTO_BY_KIND[kind]).items() if value is not None}
    )
    weaker = {name: round(value * strength, 3) for name, value in vars(full).items() if isinstance(value, float)}
    return dataclasses.replace(NO_AUGMENTATION, **{**vars(full), **weaker, **asked})


def transform(images: Tensor, spec: AugmentSpec, random: torch.Generator) -> Tensor:
    """Random geometry and light for each of float images [batch, channels, height, width] in 0..255 on its own.

    Edges are repeated where a picture is moved. Geometry is one resampling and light one matrix product a picture:
    training waits for this wherever it needs all cores itself.
    """
    if spec.shift or spec.scale or spec.rotate_degrees or spec.crop:
        images = _moved(images, spec, random)
    elif spec.horizontal_flip or spec.vertical_flip:
        images = images.clone()
        for wanted, dimension in ((spec.horizontal_flip, 3), (spec.vertical_flip, 2)):
            turned = _some(len(images), 0.5 if wanted else 0.0, random)
            images[turned] = images[turned].flip(dimension)
    if spec.brightness or spec.saturation:
        images = _lit(images, spec, random)
    return _erased(images, spec.erase, random) if spec.erase else images


def _some(count: int, probability: float, random: torch.Generator) -> Tensor:
    return torch.rand(count, generator=random) < probability


def _reach(count: int, reach: float, random: torch.Generator) -> Tensor:
    return (torch.rand(count, generator=random) * 2 - 1) * reach


def _moved(images: Tensor, spec: AugmentSpec, random: torch.Generator) -> Tensor:
    """Flips, zoom, crop, rotation and shift in one resampling."""
    count = len(images)
    angle = _reach(count, math.radians(spec.rotate_degrees or 0.0), random)
    zoom = 1 + _reach(count, spec.scale or 0.0, random)
    wide = high = torch.ones(count)
    if spec.crop:  # a part of the area at a random aspect, somewhere inside (Szegedy et al., arXiv 1409.4842)
        area = 1 - torch.rand(count, generator=random) * spec.crop
        # so that neither side is longer than the picture
        aspect = (_reach(count, 1.0, random) * (-area.log()).clamp(max=MAX_LOG_ASPECT)).exp()
        wide, high = (area * aspect).sqrt(), (area / aspect).sqrt()
    right = _reach(count, 1.0, random) * (1 - wide) + _reach(count, 2 * (spec.shift or 0.0), random)
    down = _reach(count, 1.0, random) * (1 - high) + _reach(count, 2 * (spec.shift or 0.0), random)
    mirror = 1 - 2.0 * _some(count, 0.5 * bool(spec.horizontal_flip), random)
    turn = 1 - 2.0 * _some(count, 0.5 * bool(spec.vertical_flip), random)
    ratio = images.shape[2] / images.shape[3]
    cos, sin = angle.cos() * zoom, angle.sin() * zoom
    across = [cos * wide * mirror, -sin * high * ratio * turn, right]
    along = [sin * wide / ratio * mirror, cos * high * turn, down]
    rows = torch.stack([*across, *along], 1).view(-1, 2, 3)
    grid = F.affine_grid(rows, list(images.shape), align_corners=False)
    return F.grid_sample(images, grid, padding_mode="border", align_corners=False)


def _lit(images: Tensor, spec: AugmentSpec, random: torch.Generator) -> Tensor:
    """Brightness, contrast about the picture's mean, and colour about its gray."""
    count, channels, height, width = images.shape
    gain = 1 + _reach(count, spec.brightness or 0.0, random)
    offset = _reach(count, spec.brightness or 0.0, random) * 127.5
    shift = images.mean((1, 2, 3)) * (1 - gain) + offset
    rows = images.permute(0, 2, 3, 1).reshape(count, height * width, channels)
    if channels == 1:
        lit = rows * gain[:, None, None] + shift[:, None, None]
    else:
        colour = 1 + _reach(count, spec.saturation or 0.0, random)
        gray = torch.tensor(LUMA_WEIGHTS).view(3, 1).expand(3, 3)
        matrix = (torch.eye(3) * colour[:, None, None] + gray * (1 - colour)[:, None, None]) * gain[:, None, None]
        lit = torch.baddbmm(shift[:, None, None].expand(-1, 1, 3), rows, matrix)
    return lit.clamp_(0, 255).view(count, height, width, channels).permute(0, 3, 1, 2)


def _erased(images: Tensor, probability: float, random: torch.Generator) -> Tensor:
    """A rectangle of 2 to 20 % of the area set to the picture's mean (Zhong et al., arXiv 1708.04896)."""
    count, _, height, width = images.shape
    area = 0.02 + 0.18 * torch.rand(count, generator=random)
    aspect = _reach(count, math.log(3), random).exp()
    tall = ((area * aspect).sqrt().clamp(max=1) * height).round().int().tolist()
    broad = ((area / aspect).sqrt().clamp(max=1) * width).round().int().tolist()
    places = torch.rand(count, 2, generator=random).tolist()
    images = images.clone()
    for row in torch.nonzero(_some(count, probability, random)).ravel().tolist():
        top, left = round(places[row][0] * (height - tall[row])), round(places[row][1] * (width - broad[row]))
        images[row, :, top : top + tall[row], left : left + broad[row]] = images[row].mean()
    return images


def mix(images: Tensor, wanted: Tensor, spec: AugmentSpec, random: torch.Generator) -> tuple[Tensor, Tensor]:
    """Blends each picture and its label with its neighbour's in the shuffled batch.

    mixup (Zhang et al., arXiv 1710.09412) blends the pixels, cutmix (Yun et al., arXiv 1905.04899) pastes a
    rectangle; where both are wanted, each batch has one of them.

    Args:
        images: float [batch, channels, height, width].
        wanted: float label shares [batch, classes].
    """
    if not spec.mixup and not spec.cutmix:
        return images, wanted
    cut = bool(spec.cutmix) and (not spec.mixup or torch.rand((), generator=random).item() < 0.5)
    share = _beta((spec.cutmix if cut else spec.mixup) or 1.0, random)
    other = images.roll(1, 0)
    if cut:
        height, width = images.shape[2:]
        high, wide = round(height * math.sqrt(1 - share)), round(width * math.sqrt(1 - share))
        top = int(torch.randint(height - high + 1, (), generator=random))
        left = int(torch.randint(width - wide + 1, (), generator=random))
        images = images.clone()
        images[:, :, top : top + high, left : left + wide] = other[:, :, top : top + high, left : left + wide]
        share = 1 - high * wide / (height * width)
    else:
        images = images * share + other * (1 - share)
    return images, wanted * share + wanted.roll(1, 0) * (1 - share)


def _beta(alpha: float, random: torch.Generator) -> float:
    """A draw from Beta(alpha, alpha) by Jöhnk's method, which needs nothing but uniform numbers."""
    while True:
        first, second = (torch.rand(2, generator=random, dtype=torch.float64) ** (1 / alpha)).tolist()
        if 0 < first + second <= 1:
            return float(first / (first + second))
