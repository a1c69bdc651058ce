"""The pixels that a network sees, from a file and a `Preprocessing`, as the bundle's runner makes them.

Training, verification, packaging and selection all take them from here.
"""

import inspect
from pathlib import Path
from typing import Any

import numpy as np

from toolchain.core import files
from toolchain.core.types import Preprocessing
from toolchain.edge import pixels, run

WORDS = {
    "stretch": "stretch",
    "crop": "shorter side to size / crop_share, then the centre",
    "letterbox": "whole image, bars of the colour fill around it",
}


def read(path: Path, preprocess: Preprocessing) -> np.ndarray:
    """Read an image file at the network's input size and in its channel order.

    Returns:
        uint8 [height, width] for gray, [height, width, 3] for rgb.

    Raises:
        run.Refused: the file is no readable image, or is too narrow to fit.
    """
    return fit(run.read_image(path, preprocess.mode), preprocess, path)


def fit(image: np.ndarray, preprocess: Preprocessing, path: Path | str = "an image") -> np.ndarray:
    """Bring an image, uint8 with red first, to the network's input size and channel order.

    Args:
        path: of its file, for messages.

    Raises:
        run.Refused: it is too narrow to fit.
    """
    fitted: np.ndarray = run.fit(image, describe(preprocess), path)
    return fitted


def describe(preprocess: Preprocessing) -> dict[str, Any]:
    """Return the preprocessing as a manifest has it: what came later stands there only where it is not the default."""
    described: dict[str, Any] = files.to_jsonable(preprocess, compared=True)
    return described


def describe_resizing(preprocess: Preprocessing) -> str:
    """Return in words how an image is resized, for a port to another language."""
    sampled = f"{preprocess.interpolation} {'with' if preprocess.antialias else 'without'} antialiasing"
    return f"{WORDS[preprocess.fit]}, {sampled}"


def is_stretched(preprocess: Preprocessing) -> bool:
    """Return whether images are only stretched, as run.py does without pixels.py."""
    return not set(describe(preprocess)) - run.STRETCHED


def list_sources(preprocess: Preprocessing) -> tuple[str, ...]:
    """Return the source text that decides the pixels beyond `run.fit_size`; for images that are only stretched, none."""
    if is_stretched(preprocess):
        return ()
    functions = (
        pixels.fit, pixels.plan, pixels._resize, pixels._resize_axis, pixels._resize_axis_by_nearest, pixels.point_taps,
        pixels._near, pixels._far,
    )  # fmt: skip
    return tuple(inspect.getsource(function) for function in functions)
