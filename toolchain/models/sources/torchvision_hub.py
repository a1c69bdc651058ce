"""List torchvision's classifiers and download their published weights."""

import re
import urllib.error
from collections.abc import Mapping

from torch import Tensor

from toolchain.core import registry
from toolchain.core.errors import ToolchainError
from toolchain.models.sources.published_transforms import INTERPOLATIONS, PublishedTransforms
from toolchain.models.sources.torchvision_import import import_torchvision


def list_models() -> list[str]:
    """Return the names of torchvision's classifiers."""
    library = import_torchvision().models
    names: list[str] = library.list_models(module=library)
    return names


def download_weights(model_name: str, weights: str) -> Mapping[str, Tensor]:
    """Download published weights, or read them from torch's own cache.

    Args:
        model_name: a torchvision classifier.
        weights: "DEFAULT", or another name of its weights.

    Raises:
        ToolchainError: no weights of that name, or they cannot be downloaded.
    """
    enum = import_torchvision().models.get_model_weights(model_name)
    if weights not in enum.__members__ and weights != "DEFAULT":
        raise ToolchainError(
            f"weights = {weights!r} is neither a file nor the name of published weights of {model_name}; "
            f"{registry.suggest(weights, list(dict.fromkeys(['DEFAULT', *enum.__members__])))}"
        )
    try:
        state: Mapping[str, Tensor] = enum[weights].get_state_dict(progress=True, check_hash=True)
    except (urllib.error.URLError, OSError) as reason:
        raise ToolchainError(
            f"the weights {weights} of {model_name} cannot be downloaded ({reason}); download them elsewhere and give the "
            "file: WEIGHTS=file or --weights file, in `select` with a shortlist"
        ) from reason
    return {renew_name(name): tensor for name, tensor in state.items()}


def read_transforms(model_name: str, weights: str) -> PublishedTransforms | None:
    """Return how the images of published weights were prepared; None for names that torchvision does not have."""
    if model_name not in list_models():
        return None
    enum = import_torchvision().models.get_model_weights(model_name)
    if weights not in enum.__members__ and weights != "DEFAULT":
        return None  # whoever downloads them says which there are
    transforms = enum[weights].transforms()
    crop, resized = transforms.crop_size[0], transforms.resize_size[0]
    return PublishedTransforms(
        source=f"torchvision {model_name} {weights}", mean=tuple(transforms.mean), std=tuple(transforms.std),
        interpolation=INTERPOLATIONS.get(transforms.interpolation.value), fit="crop", crop_share=crop / resized,
        words=f"resize {resized}, crop {crop}",
    )  # fmt: skip


def renew_name(name: str) -> str:
    """Return today's name of a tensor of torchvision's densenets, whose published files keep old names."""
    return re.sub(r"(denselayer\d+\.(?:norm|relu|conv))\.(\d)", r"\1\2", name)
