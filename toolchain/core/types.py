"""Every value that flows between the stages, frozen, with its units in the field names.

Standard library only: this is the room everybody may import, so it must cost nothing. `spec.py` fills the
first half from TOML files and checks them there; the second half is what the stages hand to one another.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

JsonObject = Mapping[str, Any]  # an object as it was read from JSON
ColourMode = Literal["gray", "rgb"]
Precision = Literal["f32", "bf16", "int8"]
NetworkName = Literal["dense", "pruned"]


# --- what flows ---------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Preprocessing:
    """From a decoded picture to the network's input; carried unchanged into the manifest and the runner."""

    image_size: tuple[int, int]  # height, width
    mode: ColourMode
    mean: tuple[float, ...]
    std: tuple[float, ...]


@dataclass(frozen=True, kw_only=True)
class Artefact:
    """A model file (or the first of several that belong together) as a runtime takes it."""

    path: Path
    files: tuple[Path, ...]
    sha256: str
    size_bytes: int


@dataclass(frozen=True, kw_only=True)
class Interval:
    """An estimate with the bounds of its 95 % interval and the number of samples behind it."""

    estimate: float
    low: float
    high: float
    samples: int


@dataclass(frozen=True, kw_only=True)
class IntegerCoverage:
    """What really ran in integers, as the runtime's own executed graph says."""

    integer: int
    planned: int
    total: int
    float_ops: tuple[str, ...] = ()
