"""Check single image files: unreadable, too large, animated, rotated, unusual formats, and mixed sizes and colours."""

from collections import Counter
from collections.abc import Sequence

import numpy as np

from toolchain.config.dataset import Domain
from toolchain.data.checks.finding import Finding, Severity, SizeCount
from toolchain.data.checks.thumbnails import ImageInfo
from toolchain.data.checks.wording import join_first, pluralize
from toolchain.edge import run

MAX_GRAY_TINT = 4.0  # levels of 255 by which the channels of a gray image may differ, from JPEG's rounding
MIN_REPORTED_SHARE = 0.01  # of the dataset, from which on a minority is worth a warning
MIN_SIZE_RATIO = 0.5  # of the network's input; smaller both ways, every pixel is spread over at least four
MAX_ASPECT_SPREAD = 1.5  # 95th over 5th percentile of width to height; all images are stretched to the network's shape
UNUSUAL_PIXEL_FORMATS = {
    "16 bit": "only the eight high bits are used; convert them yourself if the values of interest span a narrow range",
    "CMYK": "colours are converted without a profile and may be off; save them as RGB",
    "palette": "colours are looked up in the palette; nothing to do unless they were reduced to it",
    "transparent": "transparency is dropped, so the pixels below it become visible; put them on the right background",
    "two levels": "they have only black and white, without gray levels in between",
}


def check(images: Sequence[ImageInfo], domain: Domain, image_size: tuple[int, int]) -> list[Finding]:
    """Return all findings about single files.

    Args:
        images: all inspected files, unreadable ones among them.
        domain: says whether corrupt files are left out.
        image_size: the network's input, height and width.
    """
    readable = [image for image in images if not image.problem]
    findings = [
        *_check_unreadable(images, domain),
        *_check_too_large(images),
        *_check_animated(readable),
        *_check_rotated(readable),
        *_check_pixel_formats(readable),
    ]
    if readable:
        findings += [
            *_check_mixed_colours(readable),
            *_check_small(readable, image_size),
            *_check_aspect_ratios(readable),
        ]
    return findings


def count_sizes(images: Sequence[ImageInfo]) -> tuple[SizeCount, ...]:
    """Count the readable images of each size, most frequent first."""
    counts = Counter((image.width, image.height) for image in images if not image.problem)
    ordered = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    return tuple(SizeCount(width=width, height=height, pictures=n) for (width, height), n in ordered)


def _finding(severity: Severity, kind: str, text: str, images: Sequence[ImageInfo]) -> Finding:
    return Finding(severity=severity, kind=kind, text=text, files=tuple(image.file.display_path for image in images))


def _check_unreadable(images: Sequence[ImageInfo], domain: Domain) -> list[Finding]:
    unreadable = [image for image in images if image.problem and not image.too_large]
    if not unreadable:
        return []
    named = join_first([f"{image.file.display_path} ({image.problem})" for image in unreadable])
    skipped = domain.on_corrupt == "skip"
    ending = "They will be left out" if skipped else 'Repair or remove them, or set on_corrupt = "skip" in the domain'
    text = f"{pluralize(len(unreadable), 'file')} cannot be read: {named}. {ending}."
    return [_finding("warning" if skipped else "severe", "unreadable", text, unreadable)]


def _check_too_large(images: Sequence[ImageInfo]) -> list[Finding]:
    too_large = [image for image in images if image.too_large]
    megapixels = run.LARGEST_PICTURE // 1_000_000
    named = join_first([image.file.display_path for image in too_large])
    text = (
        f"{pluralize(len(too_large))} with more than {megapixels} million pixels will be rejected: {named}. Scale or crop "
        "them."
    )
    return [_finding("severe", "enormous", text, too_large)] if too_large else []


def _check_animated(images: Sequence[ImageInfo]) -> list[Finding]:
    animated = [image for image in images if image.frame_count > 1]
    named = join_first([f"{image.file.display_path} ({image.frame_count} frames)" for image in animated])
    text = (
        f"{pluralize(len(animated), 'file')} with several frames, of which only the first is used: {named}. Save the frames "
        "that you need as files of their own."
    )
    return [_finding("warning", "animated", text, animated)] if animated else []


def _check_rotated(images: Sequence[ImageInfo]) -> list[Finding]:
    rotated = [image for image in images if image.exif_rotated]
    text = (
        f"{pluralize(len(rotated))} of {len(images):,} rotated upright by their EXIF entry, in training and in the runner. "
        "Frames straight from the board's camera have no such entry and must be upright already."
    )
    return [_finding("note", "rotated", text, rotated)] if rotated else []


def _check_pixel_formats(images: Sequence[ImageInfo]) -> list[Finding]:
    by_format: dict[str, list[ImageInfo]] = {}
    for image in images:
        if pixel_format := _name_unusual_format(image.mode):
            by_format.setdefault(pixel_format, []).append(image)
    return [
        _finding(
            "warning" if pixel_format in {"16 bit", "CMYK"} or len(unusual) < len(images) else "note",
            pixel_format,
            f"{pluralize(len(unusual), f'{pixel_format} image')} of {len(images):,}: {UNUSUAL_PIXEL_FORMATS[pixel_format]}.",
            unusual,
        )
        for pixel_format, unusual in sorted(by_format.items())
    ]


def _name_unusual_format(mode: str) -> str:
    """Return the name of an unusual pixel format by Pillow's mode; "" for gray and RGB with 8 bits."""
    if mode.startswith(("I", "F")):
        return "16 bit"
    names = {"CMYK": "CMYK", "P": "palette", "PA": "palette", "1": "two levels"}
    return names.get(mode, "transparent" if mode in {"RGBA", "LA", "RGBa", "La"} else "")


def _check_mixed_colours(images: Sequence[ImageInfo]) -> list[Finding]:
    """Report gray images among coloured ones, or the reverse: a network may learn the class from that alone."""
    gray = [image for image in images if not is_coloured(image)]
    coloured = [image for image in images if is_coloured(image)]
    minority = min(gray, coloured, key=len)
    if len(minority) < max(1, MIN_REPORTED_SHARE * len(images)):
        return []
    name = "gray" if minority is gray else "coloured"
    counts, totals = Counter(image.file.label for image in minority), Counter(image.file.label for image in images)
    label = max(counts, key=lambda label: (counts[label] / totals[label], label))
    text = (
        f"{pluralize(len(minority))} of {len(images):,} are {name}, the others are not; in class {label}, {counts[label]} of "
        f'{totals[label]}. A network may learn that instead of the class: use one kind only, or mode = "gray" in the domain.'
    )
    return [_finding("warning", "gray and colour", text, minority)]


def is_coloured(image: ImageInfo) -> bool:
    """Return whether an image has colour: by its pixels where the domain is in colour, else by its file's mode."""
    if image.tint_thumbnail is None:
        return not image.mode.startswith(("L", "I", "F", "1"))
    return bool(np.abs(image.tint_thumbnail).max() > MAX_GRAY_TINT)


def _check_small(images: Sequence[ImageInfo], image_size: tuple[int, int]) -> list[Finding]:
    height, width = image_size
    small = [
        image for image in images if image.height < MIN_SIZE_RATIO * height and image.width < MIN_SIZE_RATIO * width
    ]
    if len(small) < max(1, MIN_REPORTED_SHARE * len(images)):
        return []
    all_small = len(small) == len(images)
    network_input = f"the network's input of {width}x{height} (width x height)"
    text = (
        f"All {len(images):,} images are less than half {network_input}. Enlarging adds no detail: a smaller image_size is "
        "faster."
        if all_small
        else f"{pluralize(len(small))} of {len(images):,} are less than half {network_input} and will be blurred compared "
        "with the others. Take them from larger originals, or lower image_size."
    )
    return [_finding("note" if all_small else "warning", "small", text, () if all_small else small)]


def _check_aspect_ratios(images: Sequence[ImageInfo]) -> list[Finding]:
    ratios = np.array([image.width / image.height for image in images])
    low, high = (float(np.percentile(ratios, percentile)) for percentile in (5, 95))
    if high / low <= MAX_ASPECT_SPREAD:
        return []
    text = (
        f"Aspect ratios differ: width to height is {low:.2f} to {high:.2f} (5th and 95th percentile), and every image is "
        'stretched to the network\'s input unless the recipe says otherwise. If proportions matter, set resize = "crop" or '
        '"letterbox" in [model].'
    )
    return [Finding(severity="warning", kind="shapes", text=text)]
