"""Fit an image to a network whose weights expect more than stretching. Travels in the bundle as pixels.py; run.py uses it.

A manifest's `preprocess` has the keys of DEFAULTS only where they differ from these values:

    fit            "stretch" to the network's size; "crop": the shorter side becomes size / crop_share, then the centre is
                   cut out; "letterbox": the whole image is shown, with bars of the colour `fill` around it
    interpolation  "bilinear", "bicubic" or "area" (Pillow's BOX)
    antialias      false: only the nearest 2x2 or 4x4 pixels count, as in OpenCV and TensorFlow
    order          "bgr": the channels that the network sees are blue, green, red; mean and std are in that order

Needs numpy and Pillow, and runs on the old Pythons that boards have.
"""

import numpy as np

DEFAULTS = {
    "fit": "stretch", "crop_share": 1.0, "fill": (114, 114, 114), "interpolation": "bilinear", "antialias": True,
    "order": "rgb",
}  # fmt: skip
ACCEPTED = {
    "fit": ("stretch", "crop", "letterbox"), "interpolation": ("bilinear", "bicubic", "area"), "antialias": (True, False),
    "order": ("rgb", "bgr"),
}  # fmt: skip
PLAIN_KEYS = {"image_size", "mode", "mean", "std", "resize", "scale"}  # of a manifest whose images are only stretched
LARGEST_PICTURE = 100_000_000  # pixels, also between the two steps of resizing
FIXED_POINT_BITS = 22  # of a weight after the point, as in Pillow
SHARPNESS = -0.75  # of the bicubic curve without antialiasing, as in OpenCV and torch; Pillow's own is -0.5


class NotFitted(Exception):
    """The manifest asks for what this file does not know, or an image cannot be fitted; the message says why."""


def fit(pixels, preprocess):
    """Bring an image to the size and the channel order that the network sees.

    Args:
        pixels: uint8 [height, width] or [height, width, 3], red first.
        preprocess: as in the manifest.

    Returns:
        uint8 of the same number of channels, at the network's input size.
    """
    settings = read_settings(preprocess)
    size, fitting = tuple(preprocess["image_size"]), settings["fit"]
    resized, window, corner = plan(pixels.shape[:2], size, fitting, settings["crop_share"])
    fitted = _resize(pixels, resized, window, settings)
    if fitting == "letterbox" and fitted.shape[:2] != size:
        canvas = np.empty(size + pixels.shape[2:], np.uint8)
        canvas[...] = settings["fill"][: pixels.shape[2]] if pixels.ndim == 3 else settings["fill"][0]
        canvas[corner[0] : corner[0] + resized[0], corner[1] : corner[1] + resized[1]] = fitted
        fitted = canvas
    if settings["order"] == "bgr" and fitted.ndim == 3:
        fitted = fitted[..., ::-1]
    return np.ascontiguousarray(fitted)


def read_settings(preprocess):
    """Return the values of DEFAULTS' keys in a manifest's `preprocess`; refuse what this version does not know."""
    settings = {name: preprocess.get(name, default) for name, default in DEFAULTS.items()}
    unknown = sorted(set(preprocess) - PLAIN_KEYS - set(DEFAULTS))
    if unknown:
        raise NotFitted("the manifest's preprocess has %s, which this version does not know" % ", ".join(unknown))
    for name, accepted in ACCEPTED.items():
        if settings[name] not in accepted:
            raise NotFitted(
                "preprocess.%s = %r in the manifest; this version knows %s"
                % (name, settings[name], ", ".join(map(str, accepted)))
            )
    if not 0 < settings["crop_share"] <= 1:
        raise NotFitted(
            "preprocess.crop_share = %r in the manifest; accepted are above 0 to 1" % settings["crop_share"]
        )
    return settings


def plan(shape, size, fitting, crop_share):
    """Return the size that the whole image is resized to, which part of that is used, and where it stands in the input.

    Args:
        shape: height and width of the image.
        size: height and width of the network's input.
        fitting: "stretch", "crop" or "letterbox".
        crop_share: the input's side as a share of the resized image's shorter one.

    Returns:
        (height, width) of the whole resized image; (top, left, height, width) of the part of it that is used; (top, left)
        of that part in the input.
    """
    height, width = shape
    if fitting == "crop":
        # as torchvision and timm count: rounded down; the small number makes 224 / (224 / 232) 232 and not 231
        tall, wide = (int(side / crop_share + 1e-6) for side in size)
        covers = tall * width >= wide * height  # with its height as wanted, it is wide enough
        resized = (tall, tall * width // height) if covers else (wide * height // width, wide)
        top, left = (round((whole - part) / 2) for whole, part in zip(resized, size))  # ties to even, as torchvision
        return resized, (top, left, *size), (0, 0)
    if fitting == "letterbox":
        if size[0] * width <= size[1] * height:
            resized = size[0], max(1, round(width * size[0] / height))
        else:
            resized = max(1, round(height * size[1] / width)), size[1]
        return resized, (0, 0, *resized), ((size[0] - resized[0]) // 2, (size[1] - resized[1]) // 2)
    return size, (0, 0, *size), (0, 0)


def _resize(pixels, resized, window, settings):
    """Resize across, then down, as run.py does, and return the window (top, left, height, width) of the result."""
    (height, width), (top, left, tall, wide) = pixels.shape[:2], window
    if settings["fit"] != "stretch" and max(height * resized[1], resized[0] * wide) > LARGEST_PICTURE:
        raise NotFitted(
            "%dx%d pixels (width x height) are too narrow to fit: resized, the image would have more than %d million pixels; "
            "crop it, or leave it out" % (width, height, LARGEST_PICTURE // 1_000_000)
        )
    axis = _resize_axis if settings["antialias"] else _resize_axis_by_nearest
    pixels = axis(pixels, 1, resized[1], settings["interpolation"])[:, left : left + wide]
    return axis(pixels, 0, resized[0], settings["interpolation"])[top : top + tall]


def _resize_axis(pixels, axis, length, interpolation):
    """Resize one axis of an image with Pillow's filters, which antialias."""
    if pixels.shape[axis] == length:
        return pixels
    from PIL import Image

    filters = Image.Resampling
    chosen = {"bilinear": filters.BILINEAR, "bicubic": filters.BICUBIC, "area": filters.BOX}[interpolation]
    size = (length, pixels.shape[0]) if axis == 1 else (pixels.shape[1], length)
    return np.asarray(Image.fromarray(np.ascontiguousarray(pixels)).resize(size, chosen))


def _resize_axis_by_nearest(pixels, axis, length, interpolation):
    """Resize one axis of an image without antialiasing: each new pixel is made of the nearest two or four."""
    if pixels.shape[axis] == length:
        return pixels
    indices, weights = point_taps(pixels.shape[axis], length, interpolation)
    total = 1 << (FIXED_POINT_BITS - 1)
    shape = (-1,) + (1,) * (pixels.ndim - 1 - axis)  # of a weight for each position on this axis
    for tap in range(indices.shape[1]):
        factors = np.trunc(weights[:, tap] * (1 << FIXED_POINT_BITS) + np.copysign(0.5, weights[:, tap]))
        total = total + np.take(pixels, indices[:, tap], axis).astype(np.int32) * factors.astype(np.int32).reshape(
            shape
        )
    return (total >> FIXED_POINT_BITS).clip(0, 255).astype(np.uint8)


def point_taps(input_size, output_size, interpolation):
    """Return which pixels make each new one without antialiasing, and their weights; beyond the edge its pixel goes on.

    Args:
        input_size: pixels of the input.
        output_size: pixels of the output.
        interpolation: "bilinear" or "bicubic".

    Returns:
        int64 [output_size, taps] and float64 of that shape.
    """
    centres = (np.arange(output_size) + 0.5) * (float(input_size) / output_size) - 0.5
    first = np.floor(centres)
    x = centres - first
    if interpolation == "bilinear":
        weights, offsets = np.stack([1 - x, x], 1), np.array([0, 1])
    elif interpolation == "bicubic":
        weights, offsets = np.stack([_far(x + 1), _near(x), _near(1 - x), _far(2 - x)], 1), np.array([-1, 0, 1, 2])
    else:
        raise NotFitted(
            "interpolation %r is an average over an area, so antialias = false has no meaning" % interpolation
        )
    indices = (first.astype(np.int64)[:, None] + offsets).clip(0, input_size - 1)
    return indices, weights


def _near(x):
    """Return the bicubic curve (Keys, 1981) at distances from 0 to 1."""
    return ((SHARPNESS + 2) * x - (SHARPNESS + 3)) * x * x + 1


def _far(x):
    """Return the bicubic curve at distances from 1 to 2."""
    return ((SHARPNESS * x - 5 * SHARPNESS) * x + 8 * SHARPNESS) * x - 4 * SHARPNESS
