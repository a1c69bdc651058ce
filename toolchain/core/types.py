"""Types that every package uses. Values are frozen and have units in their field names.

Standard library only, because every package imports this module.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

JsonObject = Mapping[str, Any]  # an object as it was read from JSON
ColourMode = Literal["gray", "rgb"]
ChannelOrder = Literal["rgb", "bgr"]
Fitting = Literal["stretch", "crop", "letterbox"]
Interpolation = Literal["bilinear", "bicubic", "area"]
Precision = Literal["f32", "bf16", "int8"]
NetworkName = Literal["dense", "pruned"]
# metadata of a dataclass field that came later: at its default it is left out of cache keys, so that older caches hold
ADDED_LATER = {"added_later": True}


@dataclass(frozen=True, kw_only=True)
class Preprocessing:
    """From a decoded image to the network's input; the manifest and the runner use the same values."""

    image_size: tuple[int, int]  # height, width
    mode: ColourMode
    mean: tuple[float, ...]  # of pixels in 0..1, in the order of the network's channels
    std: tuple[float, ...]
    # what follows is as in edge/pixels.py, and in a manifest only where it differs
    fit: Fitting = field(default="stretch", metadata=ADDED_LATER)
    crop_share: float = field(default=1.0, metadata=ADDED_LATER)  # of the shorter side, for fit = "crop"
    fill: tuple[int, int, int] = field(
        default=(114, 114, 114), metadata=ADDED_LATER
    )  # red, green, blue of a letterbox's bars; YOLO's grey
    interpolation: Interpolation = field(default="bilinear", metadata=ADDED_LATER)
    antialias: bool = field(default=True, metadata=ADDED_LATER)
    order: ChannelOrder = field(default="rgb", metadata=ADDED_LATER)  # of the network's channels


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
