"""The [package] table of a target file: the further forms in which a target needs its model, and its camera's frames."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

CAMERA_FRAMES_FORM = "frames"  # takes raw camera frames: resizing and normalisation are in the graph
C_ARRAY_FORM = "c-array"  # available for every runtime whose models are a single file


@dataclass(frozen=True, kw_only=True)
class PackageSpec:
    """Forms of the model in addition to the canonical one, which every bundle has."""

    __pydantic_config__ = {"extra": "forbid"}
    forms: tuple[str, ...] = ()  # those that the runtime offers: ort, c-array; blob
    input: Literal["float32", "uint8"] = "float32"  # uint8: add a form that takes raw frames, NHWC
    frame: tuple[int, int] | None = None  # height and width of the camera's frames; None: the network's input size
    sources: bool = False  # add the sources of the C++ runner, as runner.tar

    @property
    def is_requested(self) -> bool:
        """Return whether anything is requested in addition to the canonical form."""
        return bool(self.forms) or self.input == "uint8" or self.sources


@dataclass(frozen=True, kw_only=True)
class ConvertedModel:
    """A model that a runtime converted to another form."""

    files: tuple[Path, ...]  # the runtime opens the first
    deterministic: bool  # whether another build gives the same bytes
    bound_to: Mapping[str, str] = field(default_factory=dict)  # the exact runtime version and instructions it needs
