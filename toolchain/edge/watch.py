"""Count image statistics and predictions in the field. Travels in the bundle as watch.py; run.py --watch uses it.

A few statistics of each image and the confidence of its prediction are sorted into bins, whose edges come from the
images that the model was tested on. Only histograms are kept, window by window, never an image. The file stays
small (about ten kilobytes) and is replaced atomically, so after a power loss it holds the counts of the last write.
`toolchain drift` reads it.

Needs numpy only, and runs on the old Pythons that boards have.
"""

import errno
import hashlib
import json
import os
import sys
from pathlib import Path

import numpy as np

SCHEMA = 1
IMAGES_PER_WINDOW = 500  # a window is the unit in which drift is detected
MAX_WINDOWS = 20  # the oldest is dropped
IMAGES_PER_WRITE = 50
BINS = 10
MAX_COUNTED_CLASSES = 32  # classes with a counter of their own; all further classes share the last one
INPUT_READINGS = ("brightness", "contrast", "detail", "noise", "saturated", "colour")
READINGS = (*INPUT_READINGS, "confidence")
REFERENCE_FILE = "watch.npz"
MAX_BYTES = 1 << 20  # of a counters file


class CounterFileError(Exception):
    """A counters file cannot be read, written or used; the message says why."""


def measure_image(pixels):
    """Measure INPUT_READINGS of one image at the network's input size.

    Args:
        pixels: uint8 [height, width] or [height, width, 3].

    Returns:
        float64 [6], in the order of INPUT_READINGS.
    """
    image = pixels.astype(np.float64)
    gray = image if image.ndim == 2 else image.mean(axis=2)
    detail = np.abs(np.diff(gray, axis=0)).mean() + np.abs(np.diff(gray, axis=1)).mean()
    # second differences along both axes cancel planes and straight edges and leave noise: Immerkaer, Fast Noise
    # Variance Estimation, 1996
    horizontal = gray[:, :-2] - 2 * gray[:, 1:-1] + gray[:, 2:]
    noise = np.abs(horizontal[:-2] - 2 * horizontal[1:-1] + horizontal[2:]).mean()
    saturated = np.mean((pixels == 0) | (pixels == 255))
    colour = (image.max(axis=2) - image.min(axis=2)).mean() if image.ndim == 3 else 0.0
    return np.array([gray.mean(), gray.std(), detail, noise, saturated, colour])


def confidence(logits):
    """Return the largest softmax probability along the last axis."""
    shifted = np.asarray(logits, np.float64) - np.max(logits, axis=-1, keepdims=True)
    return 1 / np.exp(shifted).sum(axis=-1)


def compute_bin_edges(values):
    """Return the inner edges, strictly increasing, of at most BINS bins with about equal counts (quantiles)."""
    return np.unique(np.quantile(values, np.linspace(0, 1, BINS + 1)[1:-1]))


def find_bin(value, edges):
    """Return the index of the bin that a value falls into, 0 to len(edges)."""
    return int(np.searchsorted(edges, value, side="left"))


def read_bin_edges(reference):
    """Read the bin edges of every reading from the bundle's drift reference."""
    with np.load(reference, allow_pickle=False) as arrays:
        return {name: arrays["edges_" + name] for name in READINGS}


def open_counters(path, folder, classes):
    """Return the counters in `path` of the bundle in `folder`, whose model has `classes` classes."""
    bundle = hashlib.sha256((Path(folder) / "SHA256SUMS").read_bytes()).hexdigest()
    return Counters(path, bundle, read_bin_edges(Path(folder) / REFERENCE_FILE), classes)


def denormalise(image, mean, std, mode):
    """Return the uint8 pixels that the network's input, float32 [1, 3, height, width], was made of."""
    unit = np.moveaxis(image[0], 0, -1) * np.asarray(std, np.float32) + np.asarray(mean, np.float32)
    pixels = np.rint(unit * 255).clip(0, 255).astype(np.uint8)
    return pixels[..., 0] if mode == "gray" else pixels


def _attempt(step):
    """Return whether a step went well, and say if not: the caller classifies on, even if the disk is full."""
    try:
        step()
    except CounterFileError as reason:
        print(f"error: {reason}", file=sys.stderr)
        return False
    return True


class Counters:
    """Histograms of one bundle's readings and predictions, kept in one file."""

    error = CounterFileError

    def __init__(self, path, bundle, edges, classes):
        """Continue the counts of the file, if it exists.

        Args:
            path: counters file.
            bundle: the bundle's identity, SHA-256 of its SHA256SUMS.
            edges: bin edges by reading.
            classes: number of classes of the model.
        """
        self.path, self.bundle, self.edges = Path(path), bundle, edges
        self.sizes = {name: len(inner) + 1 for name, inner in edges.items()}
        self.sizes["class"] = min(classes, MAX_COUNTED_CLASSES)
        self.lock = _lock(self.path)
        try:
            self.windows = read(self.path, bundle, self.sizes)["windows"] if self.path.exists() else []
        except CounterFileError:
            self._release()
            raise
        self.unwritten = 0

    def add(self, pixels, logits):
        """Count one image, uint8 pixels at the network's input size, and its logits [classes].

        Raises:
            CounterFileError: the file was due to be written, and that failed; the image is counted nevertheless.
        """
        readings = dict(zip(INPUT_READINGS, measure_image(pixels)), confidence=confidence(logits))
        bins = {name: find_bin(value, self.edges[name]) for name, value in readings.items()}
        bins["class"] = min(int(np.argmax(logits)), self.sizes["class"] - 1)
        full = not self.windows or self.windows[-1]["pictures"] >= IMAGES_PER_WINDOW
        if full:
            current = {"pictures": 0, "counts": {name: [0] * size for name, size in self.sizes.items()}}
        else:
            current = self.windows[-1]
        counts = {name: list(row) for name, row in current["counts"].items()}
        for name, index in bins.items():
            counts[name][index] += 1
        updated = {"pictures": current["pictures"] + 1, "counts": counts}
        # one assignment, so that an interrupt cannot leave a window whose counts do not add up
        self.windows = [*(self.windows if full else self.windows[:-1]), updated][-MAX_WINDOWS:]
        self.unwritten += 1
        if self.unwritten >= IMAGES_PER_WRITE:
            self.save()

    def add_input(self, image, logits, preprocess):
        """Count one input of the network, float32 [1, 3, height, width]; return whether that went well, and say if not."""
        pixels = denormalise(image, preprocess["mean"], preprocess["std"], preprocess["mode"])
        return _attempt(lambda: self.add(pixels, logits))

    def finish(self):
        """Close the file; return whether that went well, and say if not."""
        return _attempt(self.close)

    def close(self):
        """Write the counts and release the file's lock."""
        try:
            self.save()
        finally:
            self._release()

    def _release(self):
        if self.lock:
            self.lock.close()

    def save(self):
        """Write the file atomically: a power loss leaves the old file or the new one.

        Raises:
            CounterFileError: the disk is full or there is no permission; an existing file is unchanged.
        """
        self.unwritten = 0
        text = json.dumps({"schema": SCHEMA, "bundle": self.bundle, "windows": self.windows}, sort_keys=True)
        temporary = _beside(self.path, "tmp")  # a fixed name, so that what a power loss leaves is overwritten
        try:
            with open(str(temporary), "w") as file:
                file.write(text + "\n")
                file.flush()
                os.fsync(file.fileno())
            os.replace(str(temporary), str(self.path))
            _sync_folder(self.path.parent)
        except OSError as reason:
            raise CounterFileError(f"cannot write {self.path}: {reason.strerror}") from reason


def _beside(path, ending):
    return path.with_name("." + path.name + "." + ending)


def _lock(path):
    """Lock the counters file against a second process, for as long as this one lives; None where files cannot be locked."""
    try:
        import fcntl
    except ImportError:  # not a POSIX system
        return None
    try:
        handle = open(str(_beside(path, "lock")), "a")
    except OSError as reason:
        raise CounterFileError(f"cannot write beside {path}: {reason.strerror}") from reason
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as reason:
        handle.close()
        if reason.errno not in {errno.EWOULDBLOCK, errno.EACCES}:
            return None  # some network file systems have no locks
        raise CounterFileError(f"another process counts into {path}; give each process its own file") from reason
    return handle


def _sync_folder(folder):
    """Make a rename survive a power loss, where the file system supports it."""
    try:
        handle = os.open(str(folder), os.O_RDONLY)
    except OSError:
        return
    try:
        os.fsync(handle)
    except OSError:
        pass
    finally:
        os.close(handle)


def read(path, bundle, sizes):
    """Read the counters of this bundle from a file.

    Args:
        path: counters file.
        bundle: the bundle's identity, SHA-256 of its SHA256SUMS.
        sizes: number of bins by reading, "class" included.

    Raises:
        CounterFileError: it is truncated or changed, of another schema, or of another bundle.
    """
    try:
        with open(str(path), "rb") as file:
            body = file.read(MAX_BYTES + 1)
        content = json.loads(body.decode()) if len(body) <= MAX_BYTES else None
    except OSError as reason:
        raise CounterFileError(f"cannot read {path}: {reason.strerror}") from reason
    except (ValueError, RecursionError) as reason:
        raise CounterFileError(f"{path} is truncated or damaged: {reason}") from reason
    if not isinstance(content, dict) or "bundle" not in content or not isinstance(content.get("windows"), list):
        raise CounterFileError(f"{path} holds no counters of a bundle")
    if content.get("schema") != SCHEMA:
        raise CounterFileError(f"{path}: counters of schema {content.get('schema')!r}; this version reads {SCHEMA}")
    if content["bundle"] != bundle:
        raise CounterFileError(
            f"{path} belongs to another bundle ({str(content['bundle'])[:16]}..., this one is {bundle[:16]}...); move it "
            "away, or name another file"
        )
    for number, window in enumerate(content["windows"], 1):
        if not _is_consistent(window, sizes):
            raise CounterFileError(f"{path} is damaged: the counts of its window {number} do not add up")
    return content


def _is_consistent(window, sizes):
    """Return whether the counts of every reading in a window add up to its number of images."""
    if (
        not isinstance(window, dict)
        or not isinstance(window.get("counts"), dict)
        or set(window["counts"]) != set(sizes)
    ):
        return False
    total = window.get("pictures")
    for name, counts in window["counts"].items():
        valid = isinstance(counts, list) and all(type(count) is int and count >= 0 for count in counts)
        if not valid or len(counts) != sizes[name] or sum(counts) != total:
            return False
    return type(total) is int and 0 < total <= IMAGES_PER_WINDOW
