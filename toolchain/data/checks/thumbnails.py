"""What one picture file is: its kind, its size, its pixels' hash and a thumbnail, from one look at the file.

Pixels come from the runner's own reader, so that "cannot be read" means here what it means in training and on the
device. Thumbnails are taken while the pixels are at hand: the search for copies then needs no file a second time.
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

THUMBNAIL_SIDE = 32  # of the thumbnail in gray levels; its shape is dropped, so that a stretched copy looks the same
TINT_SIDE = 8  # of the thumbnail's colours
MIN_REDUCED_SIDE = (
    128  # pixels a side that a large picture keeps before it is turned to floating point: 16 a thumbnail's cell
)
EXIF_ORIENTATION = 0x0112  # EXIF tag; 1 is upright


@dataclass(frozen=True, kw_only=True, eq=False)
class ImageInfo:
    """One file. Where `problem` is set it cannot be read, and nothing below is known."""

    file: ImageFile
    problem: str = ""
    too_large: bool = False  # more pixels than the runner takes
    mode: str = ""  # Pillow's, as the file holds it
    width: int = 0  # as the network sees it, that is after the EXIF rotation
    height: int = 0
    frame_count: int = 1
    exif_rotated: bool = False  # by EXIF
    pixel_hash: str = ""  # hash of the decoded pixels and their shape
    gray_thumbnail: np.ndarray | None = None  # float16 [32, 32]
    tint_thumbnail: np.ndarray | None = None  # float16 [8, 8, 3], colour minus its own gray; None in a gray domain


def inspect_files(entries: Sequence[ImageFile], mode: ColourMode) -> list[ImageInfo]:
    """Looks at every file, in order. Threads suffice: Pillow decodes and hashlib hashes outside Python's lock."""
    looks = []
    workers = ThreadPoolExecutor(os.cpu_count())
    try:
        # what Pillow warns of (odd EXIF, large pictures) is either harmless or found below
        with progress.show_bar("look at pictures", len(entries)) as bar, warnings.catch_warnings():
            warnings.simplefilter("ignore")
            for found in workers.map(lambda entry: inspect_file(entry, mode), entries):
                looks.append(found)
                bar.step()
    finally:
        workers.shutdown(cancel_futures=True)
    return looks


def inspect_file(entry: ImageFile, mode: ColourMode) -> ImageInfo:
    """Reads a file; never raises for what is in it."""
    try:
        with Image.open(entry.path) as picture:
            kind, area = picture.mode, picture.width * picture.height
            frames, rotated = _frames(picture), _rotated(picture)
    except Image.DecompressionBombError:
        return ImageInfo(file=entry, problem="more pixels than any camera's", too_large=True)
    except Exception as reason:  # Pillow raises many kinds for a broken file
        return ImageInfo(file=entry, problem=_said(reason, entry))
    if area > run.LARGEST_PICTURE:
        return ImageInfo(file=entry, problem="more pixels than any camera's", too_large=True)
    try:
        pixels = run.read_picture(entry.path, mode)
    except run.Refused as reason:
        return ImageInfo(file=entry, problem=_said(reason.__cause__ or reason, entry))
    gray, tint = make_thumbnails(pixels)
    return ImageInfo(
        file=entry,
        mode=kind,
        width=pixels.shape[1],
        height=pixels.shape[0],
        frame_count=frames,
        exif_rotated=rotated,
        pixel_hash=hashlib.blake2b(repr(pixels.shape).encode() + pixels.tobytes(), digest_size=16).hexdigest(),
        gray_thumbnail=gray,
        tint_thumbnail=tint,
    )


def _frames(picture: Image.Image) -> int:
    """Frames of an animation, pages of a document; a phone's second picture for its screen (MPO) is none."""
    try:
        return 1 if picture.format == "MPO" else getattr(picture, "n_frames", 1)
    except Exception:  # counting means reading on; the first frame may be fine nevertheless
        return 1


def _rotated(picture: Image.Image) -> bool:
    if picture.format == "PNG" and "exif" not in picture.info:
        return False  # asking would decode the whole picture
    return bool(picture.getexif().get(EXIF_ORIENTATION, 1) != 1)


def _said(reason: BaseException, entry: ImageFile) -> str:
    """What Pillow complains about, without the path, which the finding names."""
    if isinstance(reason, UnidentifiedImageError):
        return "is no picture" if entry.path.stat().st_size else "is empty"
    return first_line(reason).encode(errors="backslashreplace").decode()


def make_thumbnails(pixels: np.ndarray) -> tuple[np.ndarray, np.ndarray | None]:
    """From uint8 [height, width] or [height, width, 3]: gray levels [32, 32] and tints [8, 8, 3], both float16."""
    picture = Image.fromarray(pixels)
    factor = min(picture.size) // MIN_REDUCED_SIDE
    small = picture.reduce(factor) if factor > 1 else picture
    gray = small.convert("L").convert("F").resize((THUMBNAIL_SIDE, THUMBNAIL_SIDE), Image.Resampling.BILINEAR)
    tint = None
    if pixels.ndim == 3:
        colours = np.asarray(small.resize((TINT_SIDE, TINT_SIDE), Image.Resampling.BOX), np.float32)
        tint = (colours - colours.mean(2, keepdims=True)).astype(np.float16)
    return np.asarray(gray).astype(np.float16), tint
