"""How much of a pretrained network is worth keeping, as data: `[reuse]` of a recipe, or what the advisor proposes."""

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Reuse:
    """Each names a block as `toolchain select` lists them (`features.7`, `layer3.1`); "": not asked for."""

    __pydantic_config__ = {"extra": "forbid"}
    keep: str = ""  # the last block that is kept; a linear head follows it
    freeze: str = ""  # the last block whose weights stay as they are while fine-tuning
    fresh: str = ""  # the first block that starts anew; the first of all: only the architecture is taken over
