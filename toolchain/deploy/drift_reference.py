"""What `run.py --watch` compares with: the readings of the pictures that the model was tested on, and whether it was right."""

import io
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from toolchain.core import files
from toolchain.core.errors import ToolchainError
from toolchain.edge import archive, manifest, watch

MAX_IMAGES = 6000  # spread over all; more tell nothing that these do not


@dataclass(frozen=True, kw_only=True)
class SplitPredictions:
    """Pictures of one split and their answers in the target's runtime."""

    pixels: np.ndarray  # uint8 [pictures, height, width(, 3)]
    logits: np.ndarray  # [pictures, classes]
    labels: np.ndarray  # int [pictures]


@dataclass(frozen=True, kw_only=True)
class DriftReference:
    """As the bundle carries it."""

    bin_edges: Mapping[str, np.ndarray]  # of the bins, by reading
    bin_indices: Mapping[str, np.ndarray]  # uint8 [pictures] each, "class" among them
    correct: np.ndarray  # bool [pictures]

    def count_bins(self, classes: int) -> dict[str, int]:
        """How many bins every reading has, for a model of so many classes."""
        return {
            **{name: len(own) + 1 for name, own in self.bin_edges.items()},
            "class": min(classes, watch.MAX_COUNTED_CLASSES),
        }

    def count_images(self, sizes: Mapping[str, int]) -> dict[str, np.ndarray]:
        """Pictures in each bin."""
        return {name: np.bincount(self.bin_indices[name], minlength=size) for name, size in sizes.items()}


def build_arrays(splits: Sequence[SplitPredictions]) -> dict[str, np.ndarray]:
    """The reference as named arrays for a .npz file."""
    pixels = np.concatenate([one.pixels for one in splits])
    logits = np.concatenate([one.logits for one in splits])
    labels = np.concatenate([one.labels for one in splits])
    chosen = np.linspace(0, len(labels) - 1, min(MAX_IMAGES, len(labels))).astype(int)
    values = np.stack([watch.measure_image(one) for one in pixels[chosen]])
    found = dict(zip(watch.INPUT_READINGS, values.T, strict=True)) | {"confidence": watch.confidence(logits[chosen])}
    kept: dict[str, np.ndarray] = {"right": logits[chosen].argmax(1) == labels[chosen]}
    for name, own in found.items():
        edges: np.ndarray = watch.compute_bin_edges(own)
        kept[f"edges_{name}"] = edges
        kept[f"bins_{name}"] = np.asarray(np.searchsorted(edges, own, side="left"), np.uint8)
    classes = min(logits.shape[1], watch.MAX_COUNTED_CLASSES)
    kept["bins_class"] = np.minimum(logits[chosen].argmax(1), classes - 1).astype(np.uint8)
    return kept


@dataclass(frozen=True, kw_only=True)
class WatchedBundle:
    """A bundle as far as its counters are concerned."""

    name: str
    identity: str  # what its counters call it
    classes: tuple[str, ...]
    reference: DriftReference


def load_bundle(path: Path) -> WatchedBundle:
    """A bundle's folder or archive, checked.

    Raises:
        ToolchainError: it is damaged, or was built without a reference.
    """
    if not path.is_dir():
        if not path.is_file():
            raise ToolchainError(f"{path} is not there; a bundle's folder or .tar is wanted")
        with tempfile.TemporaryDirectory() as scratch:
            return load_bundle(archive.unpack(path, Path(scratch) / "bundle"))
    made = manifest.parse(archive.read_verified_manifest(path), path)
    if made.watch not in archive.list_checksummed_files(path):
        raise ToolchainError(f"{path} carries nothing to watch by; it was built by an older toolchain, export it again")
    return WatchedBundle(
        name=f"{made.recipe} for {made.target}, release {made.release}", classes=made.classes,
        identity=files.sha256_file(path / archive.CHECKSUM_FILE), reference=read(path / made.watch),
    )  # fmt: skip


def read(path: Path) -> DriftReference:
    """A bundle's reference.

    Raises:
        ToolchainError: the file is not one.
    """
    try:
        with np.load(io.BytesIO(path.read_bytes()), allow_pickle=False) as kept:
            return DriftReference(
                bin_edges={name: kept[f"edges_{name}"] for name in watch.READINGS},
                bin_indices={name: kept[f"bins_{name}"] for name in (*watch.READINGS, "class")},
                correct=kept["right"],
            )
    except (OSError, ValueError, KeyError, EOFError) as reason:
        raise ToolchainError(f"{path} holds no reference to watch by ({reason})") from reason
