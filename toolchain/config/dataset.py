"""Dataset: carried out of a larger module; to be described."""

from dataclasses import dataclass
from typing import Literal

from toolchain.config.recipe import STRICT
from toolchain.core.types import ColourMode

ImageKind = Literal["photo", "overhead", "thermal", "text"]


@dataclass(frozen=True, kw_only=True)
class Domain:
    """One set of labelled images."""

    __pydantic_config__ = STRICT
    name: str
    description: str = ""
    source: str = "folder"  # "folder", or the name of a bundled source in data.py
    path: str = ""  # of the folder; relative to the working directory
    mode: ColourMode = "rgb"
    kind: ImageKind = "photo"  # decides which augmentation leaves a picture in its class
    image_size: tuple[int, int] = (224, 224)  # height, width
    classes: tuple[str, ...] = ()  # empty: the folder's sub-folders, sorted
    validation_share: float = 0.15  # used where the folder has no val/ of its own
    test_share: float = 0.2  # used where the folder has no test/ of its own
    split_seed: int = 0
    group_pattern: str = ""  # regular expression on file names; files that agree in its first group share a split
    calibration_images: int = 256
    calibration_seed: int = 0
    on_corrupt: Literal["fail", "skip"] = "fail"
    licence: str = ""
