"""Models of timm, an extra: `timm:<name>` where a model is named; its cards say under which licence the weights are."""

from collections.abc import Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any

from torch import Tensor, nn

from toolchain.core import registry
from toolchain.core.errors import ToolchainError, first_line
from toolchain.models.sources.torchvision_import import import_torchvision

PREFIX = "timm:"
INSTALL_COMMAND = "pip install 'edge-toolchain[timm]'"
PERMISSIVE_LICENCES = {
    "apache-2.0",
    "mit",
    "bsd-3-clause",
    "bsd-2-clause",
}  # licences that let a product carry the weights


@dataclass(frozen=True)
class ModelCard:
    """What timm knows of a model's published weights."""

    mean: tuple[float, ...]
    std: tuple[float, ...]
    licence: str  # "" where it does not say
    training_tag: str  # of the training, as `in1k`


def is_installed() -> bool:
    """Whether there is a timm to ask."""
    try:
        import_timm()
    except ToolchainError:
        return False
    return True


def import_timm() -> Any:
    """The imported library.

    Raises:
        ToolchainError: it is not installed; says what to run.
    """
    import_torchvision()  # timm imports it, and here it may need a hand
    try:
        import timm
    except ImportError as reason:
        raise ToolchainError(f"models of timm need timm, which is not installed; run: {INSTALL_COMMAND}") from reason
    return timm


def build_untrained(name: str, classes: int, arguments: Mapping[str, Any]) -> nn.Module:
    """The untrained network of `timm:<name>`.

    Raises:
        ToolchainError: there is none, timm is missing, or an argument is refused.
    """
    bare, known = _bare(name), import_timm().list_models()
    if bare.partition(".")[0] not in known:
        close = get_close_matches(bare, known, n=8, cutoff=0.5)  # of more than a thousand
        raise ToolchainError(f"there is no model {bare!r} in timm; {registry.suggest(bare, close)}")
    try:
        model = import_timm().create_model(bare.partition(".")[0], pretrained=False, num_classes=classes, **arguments)
    except (TypeError, ValueError, RuntimeError) as reason:
        raise ToolchainError(
            f"[model] arguments {dict(arguments)} do not suit {name}: {first_line(reason)}"
        ) from reason
    assert isinstance(model, nn.Module)
    return model


def download_weights(name: str) -> Mapping[str, Tensor]:
    """The published weights, downloaded.

    Raises:
        ToolchainError: there are none, or they cannot be downloaded.
    """
    try:
        state: Mapping[str, Tensor] = import_timm().create_model(_bare(name), pretrained=True).state_dict()
    except Exception as reason:  # its hub's errors share no base class
        raise ToolchainError(
            f"the weights of {name} cannot be had ({first_line(reason)}); download them elsewhere and pass the file"
        ) from reason
    return state


def read_card(name: str) -> ModelCard:
    """What is said of the published weights.

    Raises:
        ToolchainError: timm is missing, or knows no such model.
    """
    build_untrained(name, 2, {})  # says what there is
    found = import_timm().get_pretrained_cfg(_bare(name))
    if found is None:
        raise ToolchainError(f"timm has no weights for {name}; random:{name} is the network without any")
    return ModelCard(tuple(found.mean), tuple(found.std), str(found.license or ""), str(found.tag or ""))


def _bare(name: str) -> str:
    return name.removeprefix(PREFIX)
