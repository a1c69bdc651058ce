"""Models of timm, an extra: `timm:<name>` where a model is named; its cards say under which licence the weights are."""

from collections.abc import Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any

from torch import Tensor, nn

from toolchain.core import registry
from toolchain.core.errors import ToolchainError, brief
from toolchain.models.sources.torchvision_import import torchvision

PREFIX = "timm:"
INSTALL = "pip install 'edge-toolchain[timm]'"
FREE = {"apache-2.0", "mit", "bsd-3-clause", "bsd-2-clause"}  # licences that let a product carry the weights


@dataclass(frozen=True)
class Card:
    """What timm knows of a model's published weights."""

    mean: tuple[float, ...]
    std: tuple[float, ...]
    licence: str  # "" where it does not say
    tag: str  # of the training, as `in1k`


def installed() -> bool:
    """Whether there is a timm to ask."""
    try:
        library()
    except ToolchainError:
        return False
    return True


def library() -> Any:
    """The imported library.

    Raises:
        ToolchainError: it is not installed; says what to run.
    """
    torchvision()  # timm imports it, and here it may need a hand
    try:
        import timm
    except ImportError as reason:
        raise ToolchainError(f"models of timm need timm, which is not installed; run: {INSTALL}") from reason
    return timm


def build(name: str, classes: int, arguments: Mapping[str, Any]) -> nn.Module:
    """The untrained network of `timm:<name>`.

    Raises:
        ToolchainError: there is none, timm is missing, or an argument is refused.
    """
    bare, known = _bare(name), library().list_models()
    if bare.partition(".")[0] not in known:
        close = get_close_matches(bare, known, n=8, cutoff=0.5)  # of more than a thousand
        raise ToolchainError(f"there is no model {bare!r} in timm; {registry.nearest(bare, close)}")
    try:
        model = library().create_model(bare.partition(".")[0], pretrained=False, num_classes=classes, **arguments)
    except (TypeError, ValueError, RuntimeError) as reason:
        raise ToolchainError(f"[model] arguments {dict(arguments)} do not suit {name}: {brief(reason)}") from reason
    assert isinstance(model, nn.Module)
    return model


def weights(name: str) -> Mapping[str, Tensor]:
    """The published weights, downloaded.

    Raises:
        ToolchainError: there are none, or they cannot be downloaded.
    """
    try:
        state: Mapping[str, Tensor] = library().create_model(_bare(name), pretrained=True).state_dict()
    except Exception as reason:  # its hub's errors share no base class
        raise ToolchainError(
            f"the weights of {name} cannot be had ({brief(reason)}); download them elsewhere and pass the file"
        ) from reason
    return state


def card(name: str) -> Card:
    """What is said of the published weights.

    Raises:
        ToolchainError: timm is missing, or knows no such model.
    """
    build(name, 2, {})  # says what there is
    found = library().get_pretrained_cfg(_bare(name))
    if found is None:
        raise ToolchainError(f"timm has no weights for {name}; random:{name} is the network without any")
    return Card(tuple(found.mean), tuple(found.std), str(found.license or ""), str(found.tag or ""))


def _bare(name: str) -> str:
    return name.removeprefix(PREFIX)
