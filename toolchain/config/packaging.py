"""In which further forms a target wants its model, and what its cameras give: a table of a target file."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

CAMERA_FRAMES_FORM = "frames"  # the form that takes a camera's pictures as they come
C_ARRAY_FORM = "c-array"  # of the model's only file; every runtime that has one can have this


@dataclass(frozen=True, kw_only=True)
class PackageSpec:
    """Forms beside the canonical one, which every bundle has."""

    __pydantic_config__ = {"extra": "forbid"}
    forms: tuple[str, ...] = ()  # what the runtime offers: ort, c-array; blob
    input: Literal["float32", "uint8"] = "float32"  # uint8: one more form takes raw frames, NHWC
    frame: tuple[int, int] | None = None  # height and width of the camera's; None: the network's
    sources: bool = False  # of the C++ runner, as runner.tar

    @property
    def is_requested(self) -> bool:
        """Whether anything beside the canonical form is asked for."""
        return bool(self.forms) or self.input == "uint8" or self.sources


@dataclass(frozen=True, kw_only=True)
class ConvertedModel:
    """A model in another form, as a runtime wrote it."""

    files: tuple[Path, ...]  # the first is opened
    deterministic: bool  # whether another build gives the same bytes
    bound_to: Mapping[str, str] = field(default_factory=dict)  # what it needs exactly: runtime version, instructions
