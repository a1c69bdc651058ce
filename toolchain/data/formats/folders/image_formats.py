"""Know image files by their suffix: those that this Pillow reads, and those that have to be converted first."""

import functools
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

from PIL import features

ALWAYS_READABLE = frozenset({".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".gif", ".pgm", ".ppm"})
SUFFIXES_BY_FEATURE = {"jpg": (".jfif",), "webp": (".webp",), "avif": (".avif",)}  # not in every build of Pillow
CAMERA_SUFFIXES = frozenset(
    {".heic", ".heif", ".hif", ".dng", ".raw", ".cr2", ".cr3", ".nef", ".arw", ".orf", ".rw2", ".raf", ".srw", ".pef"}
)
PROGRAM_SUFFIXES = frozenset({".jp2", ".j2k", ".jxl", ".psd", ".tga", ".svg", ".exr", ".hdr", ".dcm"})
IMAGE_SUFFIXES = frozenset(
    {
        *ALWAYS_READABLE,
        *CAMERA_SUFFIXES,
        *PROGRAM_SUFFIXES,
        *(s for group in SUFFIXES_BY_FEATURE.values() for s in group),
    }
)


@functools.cache
def readable_suffixes() -> frozenset[str]:
    """Return the suffixes, in lower case, of the files that the installed Pillow reads."""
    optional = (suffixes for name, suffixes in SUFFIXES_BY_FEATURE.items() if has_feature(name))
    return ALWAYS_READABLE.union(*optional)


def has_feature(name: str) -> bool:
    """Return whether Pillow was built with a codec or module; False for those that its release does not know yet."""
    return (name in features.modules or name in features.codecs) and bool(features.check(name))


def is_readable(path: Path) -> bool:
    """Return whether a file's suffix is that of an image that is read here."""
    return path.suffix.lower() in readable_suffixes()


def is_image(path: Path) -> bool:
    """Return whether a file's suffix is that of an image, read here or not."""
    return path.suffix.lower() in IMAGE_SUFFIXES


def count_suffixes(paths: Iterable[Path]) -> str:
    """Return the number of files by suffix, most frequent first: "12 .heic, 3 .dng"."""
    counts = Counter(path.suffix.lower() for path in paths)
    return ", ".join(f"{n:,} {suffix}" for suffix, n in sorted(counts.items(), key=lambda item: (-item[1], item[0])))
