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

from toolchain.errors import ToolchainError
from toolchain.values import AugmentSpec, Kind

# what leaves a picture of its kind in its class, at the strength that a few dozen pictures a class need
ALLOWED: Mapping[Kind, AugmentSpec] = {
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
FORBIDDEN: Mapping[Kind, Mapping[str, str]] = {
    "thermal": dict.fromkeys(("brightness", "saturation"), "a thermal picture's grey value is a temperature"),
    "text": dict.fromkeys(("horizontal_flip", "vertical_flip"), "a mirrored character is another one or none"),
}
FEW, MANY = 100, 1000  # training pictures a class between which the strength falls from full to WEAKEST
WEAKEST = 0.5
ASPECT = math.log(4 / 3)  # reach of a crop's aspect ratio, as is usual for ImageNet


def chosen(spec: AugmentSpec, kind: Kind, images_per_class: float) -> AugmentSpec:
    """What the recipe asks for; with `auto`, what suits the kind of picture, weaker where there are many.

    Raises:
        ToolchainError: the recipe asks for what changes the class of such pictures.
    """
    for name, why in FORBIDDEN.get(kind, {}).items():
        if getattr(spec, name):
            raise ToolchainError(
                f"augment.{name} = {getattr(spec, name)} does not suit {kind} pictures: {why}; leave it out, or say what "
                'kind of pictures these are (kind = "photo" in the domain)'
            )
    if not spec.auto:
        return spec
    share = (math.log(max(images_per_class, 1)) - math.log(FEW)) / (math.log(MANY) - math.log(FEW))
    strength = 1 - (1 - WEAKEST) * min(max(share, 0.0), 1.0)
    full = ALLOWED[kind]
    weaker = {name: round(value * strength, 3) for name, value in vars(full).items() if isinstance(value, float)}
    asked = {name: value for name, value in vars(spec).items() if value and name != "auto"}
    return dataclasses.replace(full, **{**weaker, **asked})


def pictures(images: Tensor, spec: AugmentSpec, random: torch.Generator) -> Tensor:
    """Random geometry and light for each of float images [batch, channels, height, width] in 0..255 on its own.

    Edges are repeated where a picture is moved.
    """
    count = len(images)

    def draw(reach: float) -> Tensor:
        return (torch.rand(count, generator=random) * 2 - 1) * reach

    for wanted, dimension in ((spec.horizontal_flip, 3), (spec.vertical_flip, 2)):
        if wanted:
            turned = torch.rand(count, generator=random) < 0.5
            images = torch.where(turned[:, None, None, None], images.flip(dimension), images)
    if spec.shift or spec.scale or spec.rotate_degrees or spec.crop:
        images = _moved(images, spec, random)
    if spec.brightness:
        gain, offset = 1 + draw(spec.brightness), draw(spec.brightness) * 255
        middle = images.mean((1, 2, 3))
        shift = middle * (1 - gain) + offset * 0.5
        images = images * gain[:, None, None, None] + shift[:, None, None, None]
    if spec.saturation and images.shape[1] == 3:
        gray = (images * torch.tensor([0.299, 0.587, 0.114]).view(1, 3, 1, 1)).sum(1, keepdim=True)
        images = gray + (images - gray) * (1 + draw(spec.saturation))[:, None, None, None]
    if spec.brightness or spec.saturation:
        images = images.clamp(0, 255)
    return _erased(images, spec.erase, random) if spec.erase else images


def _moved(images: Tensor, spec: AugmentSpec, random: torch.Generator) -> Tensor:
    """Zoom, crop, rotation and shift in one resampling."""
    count = len(images)

    def draw(reach: float) -> Tensor:
        return (torch.rand(count, generator=random) * 2 - 1) * reach

    angle, zoom = draw(math.radians(spec.rotate_degrees)), 1 + draw(spec.scale)
    wide = high = torch.ones(count)
    if spec.crop:  # a part of the area at a random aspect, somewhere inside (Szegedy et al., arXiv 1409.4842)
        area = 1 - torch.rand(count, generator=random) * spec.crop
        aspect = (draw(1.0) * (-area.log()).clamp(max=ASPECT)).exp()  # so that neither side is longer than the picture
        wide, high = (area * aspect).sqrt(), (area / aspect).sqrt()
    right = draw(1.0) * (1 - wide) + draw(2 * spec.shift)
    down = draw(1.0) * (1 - high) + draw(2 * spec.shift)
    ratio = images.shape[2] / images.shape[3]
    cos, sin = angle.cos() * zoom, angle.sin() * zoom
    rows = [cos * wide, -sin * high * ratio, right, sin * wide / ratio, cos * high, down]
    grid = F.affine_grid(torch.stack(rows, 1).view(-1, 2, 3), list(images.shape), align_corners=False)
    return F.grid_sample(images, grid, padding_mode="border", align_corners=False)


def _erased(images: Tensor, probability: float, random: torch.Generator) -> Tensor:
    """A rectangle of 2 to 20 % of the area set to the picture's mean (Zhong et al., arXiv 1708.04896)."""
    count, _, height, width = images.shape
    area = 0.02 + 0.18 * torch.rand(count, generator=random)
    aspect = ((torch.rand(count, generator=random) * 2 - 1) * math.log(3)).exp()
    chosen = torch.rand(count, generator=random) < probability
    inside = torch.ones(1, dtype=torch.bool)
    for side, dimension, share in ((height, 2, (area * aspect).sqrt()), (width, 3, (area / aspect).sqrt())):
        length = share.clamp(max=1)
        start = torch.rand(count, generator=random) * (1 - length)
        place = (torch.arange(side) + 0.5) / side
        within = (place >= start[:, None]) & (place < (start + length)[:, None])
        inside = inside & within.view(count, 1, *((side, 1) if dimension == 2 else (1, side)))
    return torch.where(inside & chosen[:, None, None, None], images.mean((1, 2, 3), keepdim=True), images)


def mixed(images: Tensor, wanted: Tensor, spec: AugmentSpec, random: torch.Generator) -> tuple[Tensor, Tensor]:
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
    share = _beta(spec.cutmix if cut else spec.mixup, random)
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
