"""Counts what a model sees and answers in the field. Travels in the bundle as watch.py; run.py --watch uses it.

A few numbers a picture are sorted into bins whose edges come from the pictures that the model was tested on; only how
many fell into each bin is kept, window by window, never a picture. The file stays below some ten kilobytes, and takes
its place in one step, so that a lost supply leaves the counts of a moment before. `toolchain drift` reads it.

Needs numpy only, and the Python that a board has.
"""

import errno
import json
import os
from pathlib import Path

import numpy as np

SCHEMA = 1
WINDOW = 500  # pictures; what happened within one is not told apart
WINDOWS = 20  # the oldest goes
EVERY = 50  # pictures between two writes
BINS = 10
MOST_CLASSES = 32  # that are counted by themselves; the rest are counted together
INPUTS = ("brightness", "contrast", "detail", "noise", "saturated", "colour")
READINGS = (*INPUTS, "confidence")
REFERENCE = "watch.npz"
MOST_BYTES = 1 << 20  # of counters


class Unusable(Exception):
    """The counters are not what they should be; the message says how."""


def inputs(pixels):
    """INPUTS of one picture, uint8 [height, width] or [height, width, 3] as the network sees it; float64 [6]."""
    whole = pixels.astype(np.float64)
    gray = whole if whole.ndim == 2 else whole.mean(axis=2)
    edges = np.abs(np.diff(gray, axis=0)).mean() + np.abs(np.diff(gray, axis=1)).mean()
    # what is left of a picture without its planes and edges: Immerkaer, Fast Noise Variance Estimation, 1996
    bends = gray[:, :-2] - 2 * gray[:, 1:-1] + gray[:, 2:]
    rough = np.abs(bends[:-2] - 2 * bends[1:-1] + bends[2:]).mean()
    clipped = np.mean((pixels == 0) | (pixels == 255))
    colour = (whole.max(axis=2) - whole.min(axis=2)).mean() if whole.ndim == 3 else 0.0
    return np.array([gray.mean(), gray.std(), edges, rough, clipped, colour])


def confidence(logits):
    """Largest softmax probability along the last axis."""
    shifted = np.asarray(logits, np.float64) - np.max(logits, axis=-1, keepdims=True)
    return 1 / np.exp(shifted).sum(axis=-1)


def edges_of(values):
    """Inner edges of at most BINS bins that the values fill alike, strictly rising."""
    return np.unique(np.quantile(values, np.linspace(0, 1, BINS + 1)[1:-1]))


def bin_of(value, edges):
    """In which bin a value lies, 0 to len(edges)."""
    return int(np.searchsorted(edges, value, side="left"))


def edges_in(reference):
    """Bin edges of every reading from the bundle's reference."""
    with np.load(reference, allow_pickle=False) as kept:
        return {name: kept["edges_" + name] for name in READINGS}


class Counters:
    """Counts of one bundle in one file."""

    unusable = Unusable

    def __init__(self, path, bundle, edges, classes):
        """Goes on from the file where there is one.

        Args:
            path: of the file.
            bundle: what tells the bundle from every other.
            edges: of the bins, by reading.
            classes: how many the model knows.
        """
        self.path, self.bundle, self.edges = Path(path), bundle, edges
        self.sizes = {name: len(own) + 1 for name, own in edges.items()}
        self.sizes["class"] = min(classes, MOST_CLASSES)
        self.held = _hold(self.path)
        try:
            self.windows = read(self.path, bundle, self.sizes)["windows"] if self.path.exists() else []
        except Unusable:
            self._release()
            raise
        self.waiting = 0

    def add(self, pixels, logits):
        """Counts one picture, uint8 as the network sees it, and its answer [classes].

        Raises:
            Unusable: it was time to write, and that failed; the picture is counted all the same.
        """
        found = dict(zip(INPUTS, inputs(pixels)), confidence=confidence(logits))
        places = {name: bin_of(value, self.edges[name]) for name, value in found.items()}
        places["class"] = min(int(np.argmax(logits)), self.sizes["class"] - 1)
        full = not self.windows or self.windows[-1]["pictures"] >= WINDOW
        if full:
            now = {"pictures": 0, "counts": {name: [0] * size for name, size in self.sizes.items()}}
        else:
            now = self.windows[-1]
        counts = {name: list(row) for name, row in now["counts"].items()}
        for name, place in places.items():
            counts[name][place] += 1
        done = {"pictures": now["pictures"] + 1, "counts": counts}
        # in one step: whatever interrupts, a window adds up
        self.windows = [*(self.windows if full else self.windows[:-1]), done][-WINDOWS:]
        self.waiting += 1
        if self.waiting >= EVERY:
            self.save()

    def close(self):
        """Writes what was counted and lets others count into the file."""
        try:
            self.save()
        finally:
            self._release()

    def _release(self):
        if self.held:
            self.held.close()

    def save(self):
        """Writes the file in one step: a cut leaves the old one or the new one.

        Raises:
            Unusable: there is no room, or no permission; what stood there still stands.
        """
        self.waiting = 0
        text = json.dumps({"schema": SCHEMA, "bundle": self.bundle, "windows": self.windows}, sort_keys=True)
        made = _beside(self.path, "tmp")  # one name: what a cut leaves is written over
        try:
            with open(str(made), "w") as file:
                file.write(text + "\n")
                file.flush()
                os.fsync(file.fileno())
            os.replace(str(made), str(self.path))
            _settle(self.path.parent)
        except OSError as reason:
            raise Unusable(f"cannot write {self.path}: {reason.strerror}") from reason


def _beside(path, ending):
    return path.with_name("." + path.name + "." + ending)


def _hold(path):
    """Keeps a second process from counting into the same file, for as long as this one lives."""
    try:
        import fcntl
    except ImportError:  # not a POSIX system
        return None
    try:
        handle = open(str(_beside(path, "lock")), "a")
    except OSError as reason:
        raise Unusable(f"cannot write beside {path}: {reason.strerror}") from reason
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as reason:
        handle.close()
        if reason.errno not in {errno.EWOULDBLOCK, errno.EACCES}:
            return None  # some network folders cannot lock
        raise Unusable(f"another process counts into {path}; give each its own file") from reason
    return handle


def _settle(folder):
    """Makes a rename last through a lost supply, where the system can."""
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
    """Counters of this bundle from a file.

    Raises:
        Unusable: it is cut or changed, of another schema, or another bundle's.
    """
    try:
        with open(str(path), "rb") as file:
            body = file.read(MOST_BYTES + 1)
        found = json.loads(body.decode()) if len(body) <= MOST_BYTES else None
    except OSError as reason:
        raise Unusable(f"cannot read {path}: {reason.strerror}") from reason
    except (ValueError, RecursionError) as reason:
        raise Unusable(f"{path} is cut or damaged: {reason}") from reason
    if not isinstance(found, dict) or "bundle" not in found or not isinstance(found.get("windows"), list):
        raise Unusable(f"{path} holds no counters of a bundle")
    if found.get("schema") != SCHEMA:
        raise Unusable(f"{path}: counters of schema {found.get('schema')!r}; this version reads {SCHEMA}")
    if found["bundle"] != bundle:
        raise Unusable(
            f"{path} counts for another bundle ({str(found['bundle'])[:16]}..., this is {bundle[:16]}...); move it away, "
            "or name another file"
        )
    for number, window in enumerate(found["windows"], 1):
        if not _whole(window, sizes):
            raise Unusable(f"{path} is damaged: its window {number} does not add up")
    return found


def _whole(window, sizes):
    """Whether every reading of a window has been counted as often as there were pictures."""
    if (
        not isinstance(window, dict)
        or not isinstance(window.get("counts"), dict)
        or set(window["counts"]) != set(sizes)
    ):
        return False
    total = window.get("pictures")
    for name, counts in window["counts"].items():
        numbers = isinstance(counts, list) and all(type(count) is int and count >= 0 for count in counts)
        if not numbers or len(counts) != sizes[name] or sum(counts) != total:
            return False
    return type(total) is int and 0 < total <= WINDOW
