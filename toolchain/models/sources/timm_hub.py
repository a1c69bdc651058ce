"""Build models of timm, an optional extra, and download their weights; a recipe names one as `timm:<name>`.

timm's model cards say under which licence the weights are published.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any

from torch import Tensor, nn

from toolchain.core import registry
from toolchain.core.errors import ToolchainError, first_line
from toolchain.core.types import Fitting
from toolchain.models.sources.published_transforms import INTERPOLATIONS, PublishedTransforms
from toolchain.models.sources.torchvision_import import import_torchvision

PREFIX = "timm:"
INSTALL_COMMAND = "pip install 'edge-toolchain[timm]'"
PERMISSIVE_LICENCES = {"apache-2.0", "mit", "bsd-3-clause", "bsd-2-clause"}  # a product may ship such weights


@dataclass(frozen=True)
class ModelCard:
    """What timm says about a model's published weights."""

    mean: tuple[float, ...]
    std: tuple[float, ...]
    licence: str  # "" where timm does not say
    training_tag: str  # names the training data, such as `in1k`


def is_installed() -> bool:
    """Return whether timm can be imported."""
    try:
        import_timm()
    except ToolchainError:
        return False
    return True


def import_timm() -> Any:
    """Return the timm module.

    Raises:
        ToolchainError: it is not installed; says which command installs it.
    """
    import_torchvision()  # timm imports torchvision, which may need its operators declared first
    try:
        import timm
    except ImportError as reason:
        raise ToolchainError(
            f"timm is not installed; models named {PREFIX}<name> need it: {INSTALL_COMMAND}"
        ) from reason
    return timm


def build_untrained(name: str, classes: int, arguments: Mapping[str, Any]) -> nn.Module:
    """Build the network `timm:<name>` with random weights.

    Args:
        name: with the prefix "timm:", and with or without a tag of its weights.
        classes: outputs of the head.
        arguments: for timm's builder.

    Raises:
        ToolchainError: no such model, timm is not installed, or an argument is not accepted.
    """
    timm_name = _strip_prefix(name)
    architecture, known = timm_name.partition(".")[0], import_timm().list_models()
    if architecture not in known:
        close = get_close_matches(timm_name, known, n=8, cutoff=0.5)  # not all of more than a thousand
        raise ToolchainError(f"there is no model {timm_name!r} in timm; {registry.suggest(timm_name, close)}")
    try:
        model = import_timm().create_model(architecture, pretrained=False, num_classes=classes, **arguments)
    except (TypeError, ValueError, RuntimeError) as reason:
        raise ToolchainError(
            f"[model] arguments {dict(arguments)} do not suit {name}: {first_line(reason)}"
        ) from reason
    assert isinstance(model, nn.Module)
    return model


def download_weights(name: str) -> Mapping[str, Tensor]:
    """Download the published weights of `timm:<name>`.

    Raises:
        ToolchainError: there are none, or they cannot be downloaded.
    """
    try:
        state: Mapping[str, Tensor] = import_timm().create_model(_strip_prefix(name), pretrained=True).state_dict()
    except Exception as reason:  # the errors of its hub share no base class
        raise ToolchainError(
            f"the weights of {name} cannot be downloaded ({first_line(reason)}); download them elsewhere and give the file"
        ) from reason
    return state


def read_card(name: str) -> ModelCard:
    """Return the model card of `timm:<name>`.

    Raises:
        ToolchainError: timm is not installed, or has no such model or no weights for it.
    """
    build_untrained(name, 2, {})  # raises with the models that there are
    config = import_timm().get_pretrained_cfg(_strip_prefix(name))
    if config is None:
        raise ToolchainError(f"timm has no weights for {name}; random:{name} is the network with random weights")
    return ModelCard(
        mean=tuple(config.mean),
        std=tuple(config.std),
        licence=str(config.license or ""),
        training_tag=str(config.tag or ""),
    )


def read_transforms(name: str) -> PublishedTransforms | None:
    """Return how the images of the published weights of `timm:<name>` were prepared; None where there are none."""
    config = import_timm().get_pretrained_cfg(_strip_prefix(name))
    if config is None:
        return None
    share, mode = float(config.crop_pct), config.crop_mode or "center"
    fit: Fitting | None = "crop" if mode == "center" else "stretch" if mode == "squash" and share == 1 else None
    return PublishedTransforms(
        source=f"timm {_strip_prefix(name)}", mean=tuple(config.mean), std=tuple(config.std),
        interpolation=INTERPOLATIONS.get(config.interpolation), fit=fit, crop_share=share,
        words=f"crop_pct {share:g}, crop_mode {mode}",
    )  # fmt: skip


def _strip_prefix(name: str) -> str:
    return name.removeprefix(PREFIX)
