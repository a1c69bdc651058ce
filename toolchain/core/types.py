"""Types that every package uses. Values are frozen and have units in their field names.

Standard library only, because every package imports this module.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

JsonObject = Mapping[str, Any]  # an object as it was read from JSON
ColourMode = Literal["gray", "rgb"]
Precision = Literal["f32", "bf16", "int8"]
NetworkName = Literal["dense", "pruned"]
# metadata of a dataclass field that came later: at its default it is left out of cache keys, so that older caches hold
ADDED_LATER = {"added_later": True}


@dataclass(frozen=True, kw_only=True)
class Preprocessing:
    """From a decoded image to the network's input; the manifest and the runner use the same values."""

    image_size: tuple[int, int]  # height, width
    mode: ColourMode
    mean: tuple[float, ...]  # of pixels in 0..1
    std: tuple[float, ...]


@dataclass(frozen=True, kw_only=True)
class Artefact:
    """A model as a runtime opens it: one file, or several that belong together."""

    path: Path  # the file that the runtime opens, first in `files`
    files: tuple[Path, ...]
    sha256: str  # over all files
    size_bytes: int


@dataclass(frozen=True, kw_only=True)
class Interval:
    """An estimate with its 95 % confidence interval and the number of samples."""

    estimate: float
    low: float
    high: float
    samples: int


@dataclass(frozen=True, kw_only=True)
class IntegerCoverage:
    """How many layers ran in int8, according to the graph that the runtime executed."""

    integer: int  # layers that ran in int8
    planned: int  # layers that the placement quantizes
    total: int  # layers with weights, in int8 or float
    float_ops: tuple[str, ...] = ()  # layers that fell back to float
