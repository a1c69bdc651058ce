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

MOST_PICTURES = 6000  # spread over all; more tell nothing that these do not


@dataclass(frozen=True, kw_only=True)
class Seen:
    """Pictures of one split and their answers in the target's runtime."""

    pixels: np.ndarray  # uint8 [pictures, height, width(, 3)]
    logits: np.ndarray  # [pictures, classes]
    labels: np.ndarray  # int [pictures]


@dataclass(frozen=True, kw_only=True)
class Reference:
    """As the bundle carries it."""

    edges: Mapping[str, np.ndarray]  # of the bins, by reading
    bins: Mapping[str, np.ndarray]  # uint8 [pictures] each, "class" among them
    right: np.ndarray  # bool [pictures]

    def sizes(self, classes: int) -> dict[str, int]:
        """How many bins every reading has, for a model of so many classes."""
        return {**{name: len(own) + 1 for name, own in self.edges.items()}, "class": min(classes, watch.MOST_CLASSES)}

    def counts(self, sizes: Mapping[str, int]) -> dict[str, np.ndarray]:
        """Pictures in each bin."""
        return {name: np.bincount(self.bins[name], minlength=size) for name, size in sizes.items()}


def arrays(splits: Sequence[Seen]) -> dict[str, np.ndarray]:
    """The reference as named arrays for a .npz file."""
    pixels = np.concatenate([one.pixels for one in splits])
    logits = np.concatenate([one.logits for one in splits])
    labels = np.concatenate([one.labels for one in splits])
    chosen = np.linspace(0, len(labels) - 1, min(MOST_PICTURES, len(labels))).astype(int)
    values = np.stack([watch.inputs(one) for one in pixels[chosen]])
    found = dict(zip(watch.INPUTS, values.T, strict=True)) | {"confidence": watch.confidence(logits[chosen])}
    kept: dict[str, np.ndarray] = {"right": logits[chosen].argmax(1) == labels[chosen]}
    for name, own in found.items():
        edges: np.ndarray = watch.edges_of(own)
        kept[f"edges_{name}"] = edges
        kept[f"bins_{name}"] = np.asarray(np.searchsorted(edges, own, side="left"), np.uint8)
    classes = min(logits.shape[1], watch.MOST_CLASSES)
    kept["bins_class"] = np.minimum(logits[chosen].argmax(1), classes - 1).astype(np.uint8)
    return kept


@dataclass(frozen=True, kw_only=True)
class Watched:
    """A bundle as far as its counters are concerned."""

    name: str
    identity: str  # what its counters call it
    classes: tuple[str, ...]
    reference: Reference


def bundle(path: Path) -> Watched:
    """A bundle's folder or archive, checked.

    Raises:
        ToolchainError: it is damaged, or was built without a reference.
    """
    if not path.is_dir():
        if not path.is_file():
            raise ToolchainError(f"{path} is not there; a bundle's folder or .tar is wanted")
        with tempfile.TemporaryDirectory() as scratch:
            return bundle(archive.unpacked(path, Path(scratch) / "bundle"))
    made = manifest.checked(archive.manifest(path), path)
    if made.watch not in archive.listed(path):
        raise ToolchainError(f"{path} carries nothing to watch by; it was built by an older toolchain, export it again")
    return Watched(
        name=f"{made.recipe} for {made.target}, release {made.release}", classes=made.classes,
        identity=files.sha256_file(path / archive.SUMS), reference=read(path / made.watch),
    )  # fmt: skip


def read(path: Path) -> Reference:
    """A bundle's reference.

    Raises:
        ToolchainError: the file is not one.
    """
    try:
        with np.load(io.BytesIO(path.read_bytes()), allow_pickle=False) as kept:
            return Reference(
                edges={name: kept[f"edges_{name}"] for name in watch.READINGS},
                bins={name: kept[f"bins_{name}"] for name in (*watch.READINGS, "class")},
                right=kept["right"],
            )
    except (OSError, ValueError, KeyError, EOFError) as reason:
        raise ToolchainError(f"{path} holds no reference to watch by ({reason})") from reason
