"""The drift reference in a bundle: statistics of the images that the model was tested on, and which it got right.

`run.py --watch` takes its bin edges from it; `toolchain drift` compares the field's counts with it.
"""

import io
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from toolchain.core import files
from toolchain.core.errors import ToolchainError
from toolchain.edge import archive, manifest, watch

MAX_IMAGES = 6000  # spread evenly over all images; more would only make the bundle larger


@dataclass(frozen=True, kw_only=True)
class SplitPredictions:
    """Images of one split with their logits in the target's runtime."""

    pixels: np.ndarray  # uint8 [images, height, width(, 3)]
    logits: np.ndarray  # [images, classes]
    labels: np.ndarray  # int [images]


@dataclass(frozen=True, kw_only=True)
class DriftReference:
    """Bin of every reading of every reference image, and whether its prediction was correct."""

    bin_edges: Mapping[str, np.ndarray]  # inner edges by reading
    bin_indices: Mapping[str, np.ndarray]  # uint8 [images] by reading, and for "class"
    correct: np.ndarray  # bool [images]

    def count_bins(self, classes: int) -> dict[str, int]:
        """Return the number of bins of every reading, and of "class", for a model with `classes` classes."""
        return {
            **{name: len(edges) + 1 for name, edges in self.bin_edges.items()},
            "class": min(classes, watch.MAX_COUNTED_CLASSES),
        }

    def count_images(self, sizes: Mapping[str, int]) -> dict[str, np.ndarray]:
        """Return the number of reference images in each bin, [bins] by reading."""
        return {name: np.bincount(self.bin_indices[name], minlength=size) for name, size in sizes.items()}


def build_arrays(splits: Sequence[SplitPredictions]) -> dict[str, np.ndarray]:
    """Return the reference as named arrays for a .npz file."""
    pixels = np.concatenate([split.pixels for split in splits])
    logits = np.concatenate([split.logits for split in splits])
    labels = np.concatenate([split.labels for split in splits])
    chosen = np.linspace(0, len(labels) - 1, min(MAX_IMAGES, len(labels))).astype(int)
    values = np.stack([watch.measure_image(image) for image in pixels[chosen]])
    readings = dict(zip(watch.INPUT_READINGS, values.T, strict=True))
    readings["confidence"] = watch.confidence(logits[chosen])
    arrays: dict[str, np.ndarray] = {"right": logits[chosen].argmax(1) == labels[chosen]}
    for name, reading in readings.items():
        edges: np.ndarray = watch.compute_bin_edges(reading)
        arrays[f"edges_{name}"] = edges
        arrays[f"bins_{name}"] = np.asarray(np.searchsorted(edges, reading, side="left"), np.uint8)
    classes = min(logits.shape[1], watch.MAX_COUNTED_CLASSES)
    arrays["bins_class"] = np.minimum(logits[chosen].argmax(1), classes - 1).astype(np.uint8)
    return arrays


@dataclass(frozen=True, kw_only=True)
class WatchedBundle:
    """A bundle whose counters are read: its name, identity, classes and drift reference."""

    name: str
    identity: str  # SHA-256 of its SHA256SUMS, which its counters name
    classes: tuple[str, ...]
    reference: DriftReference


def load_bundle(path: Path) -> WatchedBundle:
    """Read and check a bundle's folder or archive.

    Raises:
        ToolchainError: it does not exist, is damaged, or was built without a drift reference.
    """
    if not path.is_dir():
        if not path.is_file():
            raise ToolchainError(f"{path} does not exist; give a bundle's folder or .tar")
        with tempfile.TemporaryDirectory() as scratch:
            return load_bundle(archive.unpack(path, Path(scratch) / "bundle"))
    content = manifest.parse(archive.read_verified_manifest(path), path)
    if content.watch not in archive.list_checksummed_files(path):
        raise ToolchainError(f"{path} has no drift reference: an older toolchain built it; export it again")
    return WatchedBundle(
        name=f"{content.recipe} for {content.target}, release {content.release}", classes=content.classes,
        identity=files.sha256_file(path / archive.CHECKSUM_FILE), reference=read(path / content.watch),
    )  # fmt: skip


def read(path: Path) -> DriftReference:
    """Read a bundle's drift reference.

    Raises:
        ToolchainError: the file cannot be read or is not a drift reference.
    """
    try:
        with np.load(io.BytesIO(path.read_bytes()), allow_pickle=False) as arrays:
            return DriftReference(
                bin_edges={name: arrays[f"edges_{name}"] for name in watch.READINGS},
                bin_indices={name: arrays[f"bins_{name}"] for name in (*watch.READINGS, "class")},
                correct=arrays["right"],
            )
    except (OSError, ValueError, KeyError, EOFError) as reason:
        raise ToolchainError(f"{path} is not a drift reference ({reason}); export the bundle again") from reason
