"""What `toolchain select` chooses from: pretrained models with where they come from and whether they may be shipped."""

from dataclasses import dataclass, field
from typing import Literal

from toolchain.config.recipe import ModelSpec, ReuseSpec

AUTO = "auto"
MayShip = Literal["yes", "no", "unknown"]


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """One pretrained model, whole or cut."""

    __pydantic_config__ = {"extra": "forbid"}
    name: str
    model: ModelSpec
    reuse: ReuseSpec = field(default_factory=ReuseSpec)
    trained_on: str = ""  # the set that its weights come from; "": not known
    may_ship: MayShip = "unknown"  # whether the weights' licence lets a product carry them


def is_auto(model: str) -> bool:
    """Whether a model's name leaves the choice to the ranking: "auto", or "auto:" and candidates."""
    return model.partition(":")[0] == AUTO


@dataclass(frozen=True, kw_only=True)
class Shortlist:
    """A file of candidates."""

    __pydantic_config__ = {"extra": "forbid"}
    name: str
    description: str = ""
    candidates: tuple[Candidate, ...]
