"""Findings on single files: unreadable, enormous, animated, rotated, of odd kinds, and of mixed sizes and colours."""

from collections import Counter
from collections.abc import Sequence

import numpy as np

from toolchain.config.dataset import Domain
from toolchain.data.checks.finding import Finding, Severity, SizeCount, join_first, pluralize
from toolchain.data.checks.thumbnails import ImageInfo
from toolchain.edge import run

MAX_GRAY_TINT = 4.0  # levels of 255 that a gray picture's channels may differ by: JPEG's rounding
MIN_REPORTED_SHARE = 0.01  # a share of the set that is worth a warning
MIN_SIZE_RATIO = 0.5  # of the network's input, in both directions: every pixel is drawn over four
MAX_ASPECT_SPREAD = 1.5  # how far the shapes of the pictures may lie apart; all are stretched to the network's
UNUSUAL_PIXEL_FORMATS = {
    "16 bit": ("only the eight high bits are used; convert them yourself where the interesting range is narrow"),
    "CMYK": "colours are converted without a profile and may be off; save them as RGB",
    "palette": "colours are looked up in the palette; nothing to do unless they were reduced to it",
    "transparent": "transparency is dropped, and what lay below it becomes visible; put them on the right background",
    "two levels": "nothing between black and white is left in them",
}


def check(looks: Sequence[ImageInfo], domain: Domain, image_size: tuple[int, int]) -> list[Finding]:
    """All findings on single files; `image_size` is the network's input, height and width."""
    readable = [look for look in looks if not look.problem]
    every = [
        *_unreadable(looks, domain),
        *_enormous(looks),
        *_animated(readable),
        *_rotated(readable),
        *_unusual(readable),
    ]
    return [*every, *_colours(readable), *_small(readable, image_size), *_shapes(readable)] if readable else every


def count_sizes(looks: Sequence[ImageInfo]) -> tuple[SizeCount, ...]:
    """All sizes, most frequent first."""
    counted = Counter((look.width, look.height) for look in looks if not look.problem)
    ordered = sorted(counted.items(), key=lambda item: (-item[1], item[0]))
    return tuple(SizeCount(width=width, height=height, pictures=n) for (width, height), n in ordered)


def _finding(severity: Severity, kind: str, text: str, looks: Sequence[ImageInfo]) -> Finding:
    return Finding(severity=severity, kind=kind, text=text, files=tuple(look.file.display_path for look in looks))


def _unreadable(looks: Sequence[ImageInfo], domain: Domain) -> list[Finding]:
    bad = [look for look in looks if look.problem and not look.too_large]
    if not bad:
        return []
    named = join_first([f"{look.file.display_path} ({look.problem})" for look in bad])
    skipped = domain.on_corrupt == "skip"
    ending = "they will be left out" if skipped else 'repair or remove them, or set on_corrupt = "skip" in the domain'
    text = f"{pluralize(len(bad), 'file')} cannot be read: {named}; {ending}."
    return [_finding("warning" if skipped else "severe", "unreadable", text, bad)]


def _enormous(looks: Sequence[ImageInfo]) -> list[Finding]:
    found = [look for look in looks if look.too_large]
    limit = run.LARGEST_PICTURE // 1_000_000
    named = join_first([look.file.display_path for look in found])
    text = f"{pluralize(len(found))} of more than {limit} million pixels will be refused: {named}; scale or cut them."
    return [_finding("severe", "enormous", text, found)] if found else []


def _animated(looks: Sequence[ImageInfo]) -> list[Finding]:
    found = [look for look in looks if look.frame_count > 1]
    named = join_first([f"{look.file.display_path} ({look.frame_count} frames)" for look in found])
    text = f"{pluralize(len(found), 'file')} of several frames, only the first of which is used: {named}; save the frames you mean."
    return [_finding("warning", "animated", text, found)] if found else []


def _rotated(looks: Sequence[ImageInfo]) -> list[Finding]:
    found = [look for look in looks if look.exif_rotated]
    text = (
        f"{pluralize(len(found))} of {len(looks):,} turned upright by their EXIF entry, here and by the runner; frames "
        "straight from the device's camera have no such entry and must come upright."
    )
    return [_finding("note", "rotated", text, found)] if found else []


def _unusual(looks: Sequence[ImageInfo]) -> list[Finding]:
    by_kind: dict[str, list[ImageInfo]] = {}
    for look in looks:
        if kind := _kind(look.mode):
            by_kind.setdefault(kind, []).append(look)
    return [
        _finding(
            "warning" if kind in {"16 bit", "CMYK"} or len(found) < len(looks) else "note",
            kind,
            f"{pluralize(len(found), f'{kind} picture')} of {len(looks):,}: {UNUSUAL_PIXEL_FORMATS[kind]}.",
            found,
        )
        for kind, found in sorted(by_kind.items())
    ]


def _kind(mode: str) -> str:
    """Pillow's mode in words, where it is none of the two that need no thought."""
    if mode.startswith(("I", "F")):
        return "16 bit"
    names = {"CMYK": "CMYK", "P": "palette", "PA": "palette", "1": "two levels"}
    return names.get(mode, "transparent" if mode in {"RGBA", "LA", "RGBa", "La"} else "")


def _colours(looks: Sequence[ImageInfo]) -> list[Finding]:
    """Gray among colour: a network may learn the class from that alone."""
    gray = [look for look in looks if not is_coloured(look)]
    colour = [look for look in looks if is_coloured(look)]
    fewer = min(gray, colour, key=len)
    if len(fewer) < max(1, MIN_REPORTED_SHARE * len(looks)):
        return []
    name = "gray" if fewer is gray else "coloured"
    own, total = Counter(look.file.label for look in fewer), Counter(look.file.label for look in looks)
    label = max(own, key=lambda label: (own[label] / total[label], label))
    text = (
        f"{pluralize(len(fewer))} of {len(looks):,} are {name}, the others are not (of class {label}, {own[label]} of "
        f"{total[label]}): a network may take that for the class; use one kind only, or gray for all."
    )
    return [_finding("warning", "gray and colour", text, fewer)]


def is_coloured(look: ImageInfo) -> bool:
    """Whether the picture holds colour: its pixels where the domain is in colour, else its file's mode."""
    if look.tint_thumbnail is None:
        return not look.mode.startswith(("L", "I", "F", "1"))
    return bool(np.abs(look.tint_thumbnail).max() > MAX_GRAY_TINT)


def _small(looks: Sequence[ImageInfo], image_size: tuple[int, int]) -> list[Finding]:
    height, width = image_size
    found = [look for look in looks if look.height < MIN_SIZE_RATIO * height and look.width < MIN_SIZE_RATIO * width]
    if len(found) < max(1, MIN_REPORTED_SHARE * len(looks)):
        return []
    every = len(found) == len(looks)
    named = f"the network's input of {width}x{height} (width x height)"
    text = (
        f"All {len(looks):,} pictures are less than half {named}: enlarging adds no detail, a smaller image_size is faster."
        if every
        else f"{pluralize(len(found))} of {len(looks):,} are less than half {named} and will be blurred beside the others; "
        "take them from larger originals, or lower image_size."
    )
    return [_finding("note" if every else "warning", "small", text, () if every else found)]


def _shapes(looks: Sequence[ImageInfo]) -> list[Finding]:
    ratios = np.array([look.width / look.height for look in looks])
    low, high = (float(np.percentile(ratios, which)) for which in (5, 95))
    if high / low <= MAX_ASPECT_SPREAD:
        return []
    text = (
        f"Shapes differ: width to height is {low:.2f} to {high:.2f} (5th and 95th percentile), and every picture is "
        "stretched to the network's shape; cut them to one shape if proportions matter."
    )
    return [Finding(severity="warning", kind="shapes", text=text)]
