"""Inspect an image file once: its format and size, a hash of its pixels, and the thumbnails that are compared for duplicates.

Pixels are decoded by the runner's own function, so that "cannot be read" means the same here as in training and on the
board.
"""

import hashlib
import os
import warnings
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
from PIL import Image, UnidentifiedImageError

from toolchain.core import progress
from toolchain.core.errors import first_line
from toolchain.core.types import ColourMode
from toolchain.data.checks.folder_contents import ImageFile
from toolchain.edge import run

THUMBNAIL_SIDE = 32  # pixels, in gray; square whatever the image's shape, so that a stretched copy looks the same
TINT_SIDE = 8  # pixels, in colour
# pixels per side that a large image keeps when it is reduced in integers, before floating point: 16 per thumbnail cell
MIN_REDUCED_SIDE = 128
EXIF_ORIENTATION = 0x0112  # EXIF tag; 1 is upright


@dataclass(frozen=True, kw_only=True, eq=False)
class ImageInfo:
    """An inspected file. If `problem` is set, it cannot be read and the fields below are not known."""

    file: ImageFile
    problem: str = ""
    too_large: bool = False  # more pixels than the runner accepts
    mode: str = ""  # Pillow's, as stored in the file
    width: int = 0  # pixels as the network sees them, that is after the EXIF rotation
    height: int = 0
    frame_count: int = 1
    exif_rotated: bool = False
    pixel_hash: str = ""  # over the decoded pixels and their shape
    gray_thumbnail: np.ndarray | None = None  # float16 [32, 32]
    tint_thumbnail: np.ndarray | None = None  # float16 [8, 8, 3], colour minus its own gray; None in a gray domain


def inspect_files(files: Sequence[ImageFile], mode: ColourMode) -> list[ImageInfo]:
    """Inspect every file, in order. Threads are enough: Pillow and hashlib release Python's lock while they work."""
    images = []
    workers = ThreadPoolExecutor(os.cpu_count())
    try:
        # what Pillow warns about (odd EXIF entries, large images) is either harmless or reported by a check
        with progress.show_bar("inspect images", len(files)) as bar, warnings.catch_warnings():
            warnings.simplefilter("ignore")
            for image in workers.map(lambda file: inspect_file(file, mode), files):
                images.append(image)
                bar.step()
    finally:
        workers.shutdown(cancel_futures=True)
    return images


def inspect_file(file: ImageFile, mode: ColourMode) -> ImageInfo:
    """Read one file; a file that cannot be read gives a `problem`, never an exception."""
    too_large = ImageInfo(file=file, problem="more pixels than any camera has", too_large=True)
    try:
        with Image.open(file.path) as opened:
            file_mode, area = opened.mode, opened.width * opened.height
            frame_count, rotated = _count_frames(opened), _is_rotated(opened)
    except Image.DecompressionBombError:
        return too_large
    except Exception as reason:  # Pillow raises many kinds for a broken file
        return ImageInfo(file=file, problem=_describe_problem(reason, file))
    if area > run.LARGEST_PICTURE:
        return too_large
    try:
        pixels = run.read_image(file.path, mode)
    except run.Refused as reason:
        return ImageInfo(file=file, problem=_describe_problem(reason.__cause__ or reason, file))
    gray, tint = make_thumbnails(pixels)
    return ImageInfo(
        file=file,
        mode=file_mode,
        width=pixels.shape[1],
        height=pixels.shape[0],
        frame_count=frame_count,
        exif_rotated=rotated,
        pixel_hash=hashlib.blake2b(repr(pixels.shape).encode() + pixels.tobytes(), digest_size=16).hexdigest(),
        gray_thumbnail=gray,
        tint_thumbnail=tint,
    )


def _count_frames(opened: Image.Image) -> int:
    """Count the frames of an animation or the pages of a document; a phone's embedded preview (MPO) does not count."""
    try:
        return 1 if opened.format == "MPO" else getattr(opened, "n_frames", 1)
    except Exception:  # counting reads on in the file; its first frame may still be intact
        return 1


def _is_rotated(opened: Image.Image) -> bool:
    if opened.format == "PNG" and "exif" not in opened.info:
        return False  # getexif would decode the whole image
    return bool(opened.getexif().get(EXIF_ORIENTATION, 1) != 1)


def _describe_problem(reason: BaseException, file: ImageFile) -> str:
    """Return what is wrong with a file in a few words, without its path, which the finding names."""
    if isinstance(reason, UnidentifiedImageError):
        return "is not an image" if file.path.stat().st_size else "is empty"
    return first_line(reason).encode(errors="backslashreplace").decode()


def make_thumbnails(pixels: np.ndarray) -> tuple[np.ndarray, np.ndarray | None]:
    """Reduce an image to its thumbnails.

    Args:
        pixels: uint8 [height, width] or [height, width, 3].

    Returns:
        Gray levels, float16 [32, 32]; and tints (colour minus its own gray), float16 [8, 8, 3], None for a gray image.
    """
    image = Image.fromarray(pixels)
    factor = min(image.size) // MIN_REDUCED_SIDE
    reduced = image.reduce(factor) if factor > 1 else image
    gray = reduced.convert("L").convert("F").resize((THUMBNAIL_SIDE, THUMBNAIL_SIDE), Image.Resampling.BILINEAR)
    tint = None
    if pixels.ndim == 3:
        colours = np.asarray(reduced.resize((TINT_SIDE, TINT_SIDE), Image.Resampling.BOX), np.float32)
        tint = (colours - colours.mean(2, keepdims=True)).astype(np.float16)
    return np.asarray(gray).astype(np.float16), tint
