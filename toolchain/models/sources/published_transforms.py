"""How the images of published weights were prepared when they were validated, as torchvision and timm say."""

from dataclasses import dataclass

from toolchain.core.types import Fitting, Interpolation

INTERPOLATIONS: dict[str, Interpolation] = {"bilinear": "bilinear", "bicubic": "bicubic", "box": "area"}


@dataclass(frozen=True, kw_only=True)
class PublishedTransforms:
    """The images of published weights; None where they were prepared in a way that is not known here."""

    source: str  # of the weights, in words
    mean: tuple[float, ...]  # of pixels in 0..1
    std: tuple[float, ...]
    interpolation: Interpolation | None
    fit: Fitting | None
    crop_share: float  # of the shorter side, for fit = "crop"
    words: str  # how images were resized
