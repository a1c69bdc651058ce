"""Torchvision hub: carried out of a larger module; to be described."""

import re
import urllib.error
from collections.abc import Mapping

from torch import Tensor

from toolchain.config.recipe import ModelSpec
from toolchain.core import registry
from toolchain.core.errors import ToolchainError
from toolchain.models.sources import timm_hub
from toolchain.models.sources.torchvision_import import import_torchvision


def list_models() -> list[str]:
    """Names of torchvision's classifiers."""
    library = import_torchvision().models
    names: list[str] = library.list_models(module=library)
    return names


def _published(spec: ModelSpec) -> Mapping[str, Tensor]:
    if spec.name.startswith(timm_hub.PREFIX):
        return timm_hub.download_weights(spec.name)
    library = import_torchvision().models
    enum = library.get_model_weights(spec.name)
    if spec.weights not in enum.__members__ and spec.weights != "DEFAULT":
        raise ToolchainError(
            f"weights = {spec.weights!r} is neither a file nor known for {spec.name}; "
            f"{registry.suggest(spec.weights, list(dict.fromkeys(['DEFAULT', *enum.__members__])))}"
        )
    try:
        state: Mapping[str, Tensor] = enum[spec.weights].get_state_dict(progress=True, check_hash=True)
    except (urllib.error.URLError, OSError) as reason:
        raise ToolchainError(
            f"the weights {spec.weights} of {spec.name} cannot be downloaded ({reason}); "
            "download them elsewhere and name the file: WEIGHTS=file or --weights file, in `select` a shortlist"
        ) from reason
    # torchvision's own loader renames these for its densenets
    return {re.sub(r"(denselayer\d+\.(?:norm|relu|conv))\.(\d)", r"\1\2", name): t for name, t in state.items()}
