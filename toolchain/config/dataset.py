"""The dataset description that a user writes (`calibration/*.toml`): where the images are, their classes and splits."""

from dataclasses import dataclass, field
from typing import Literal

from toolchain.config.recipe import STRICT
from toolchain.core.types import ADDED_LATER, ColourMode

ImageKind = Literal["photo", "overhead", "thermal", "text"]


@dataclass(frozen=True, kw_only=True)
class Domain:
    """A labelled image dataset."""

    __pydantic_config__ = STRICT
    name: str
    description: str = ""
    source: str = "folder"  # "folder", or the name of a source in data/sources
    path: str = ""  # of the folder or the table of labels; relative to the working directory
    images: str = field(
        default="", metadata=ADDED_LATER
    )  # folder that a table's file names are relative to; "": its own
    labels: str = field(default="", metadata=ADDED_LATER)  # text file of class names, in the order of their indices
    label_column: str = field(default="", metadata=ADDED_LATER)  # of a table in which several columns may be the label
    # folder of images without labels: for distillation beside `path`, or in its place
    unlabelled: str = field(default="", metadata=ADDED_LATER)
    # "allow": `classes` are those of a trained model, and the images need not show all of them
    absent_classes: Literal["fail", "allow"] = field(default="fail", metadata=ADDED_LATER)
    mode: ColourMode = "rgb"
    kind: ImageKind = "photo"  # decides which augmentations keep an image in its class
    image_size: tuple[int, int] = (224, 224)  # height, width
    classes: tuple[str, ...] = ()  # empty: the names of the sub-folders, sorted
    validation_share: float = 0.15  # if the folder has no val/
    test_share: float = 0.2  # if the folder has no test/
    split_seed: int = 0
    group_pattern: str = ""  # regular expression on file names; files with the same first group go to the same split
    calibration_images: int = 256
    calibration_seed: int = 0
    on_corrupt: Literal["fail", "skip"] = "fail"
    licence: str = ""

    @property
    def has_labels(self) -> bool:
        """Return whether there are labelled images; if not, those without labels take their place."""
        return self.source != "folder" or bool(self.path) or not self.unlabelled

    @property
    def shows_every_class(self) -> bool:
        """Return whether every split has to hold images of every class."""
        return self.has_labels and self.absent_classes == "fail"
