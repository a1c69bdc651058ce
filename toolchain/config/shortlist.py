"""Shortlists: the pretrained models that `toolchain select` ranks, with their origin and licence."""

from dataclasses import dataclass, field
from typing import Literal

from toolchain.config.recipe import ModelSpec, ReuseSpec

AUTO = "auto"
MayShip = Literal["yes", "no", "unknown"]


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """One pretrained model, whole or truncated after a block."""

    __pydantic_config__ = {"extra": "forbid"}
    name: str
    model: ModelSpec
    reuse: ReuseSpec = field(default_factory=ReuseSpec)
    trained_on: str = ""  # dataset that its weights were trained on; "": not known
    may_ship: MayShip = "unknown"  # whether the licence of the weights allows shipping them in a product


def is_auto(model: str) -> bool:
    """Return whether a model's name leaves the choice to the ranking: "auto", or "auto:" and candidates."""
    return model.partition(":")[0] == AUTO


@dataclass(frozen=True, kw_only=True)
class Shortlist:
    """A file of candidates."""

    __pydantic_config__ = {"extra": "forbid"}
    name: str
    description: str = ""
    candidates: tuple[Candidate, ...]
