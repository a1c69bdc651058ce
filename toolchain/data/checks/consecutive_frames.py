"""Find numbered images that follow a recording: consecutive frames look alike, and a random split separates them.

Numbers alone do not define groups, as they do not tell where one exposure ends; so this only leaves a note.
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats as scipy_stats

from toolchain.data.checks.finding import Finding
from toolchain.data.checks.near_duplicates import SimilaritySearch
from toolchain.data.checks.thumbnails import ImageInfo
from toolchain.data.checks.wording import join_first, pluralize

MIN_NUMBERED_IMAGES = 50  # per class; with fewer, MIN_CLOSER_SHARE is reached by chance
# how often an image must be closer to the next one than to a random one; solar modules without a fault: 0.69, others 0.5
MIN_CLOSER_SHARE = 0.6
MAX_P_VALUE = 1e-6  # of the observed share, if the order meant nothing


@dataclass(frozen=True, kw_only=True)
class FrameSequence:
    """A class whose images with consecutive numbers look alike."""

    label: str
    closer_share: float  # of images that are more similar to the next one than to a random one of the class
    separated_pairs: int  # consecutive images that lie in different splits


def find(images: Sequence[ImageInfo], similarity: SimilaritySearch) -> list[FrameSequence]:
    """Return the classes whose images with consecutive numbers look alike.

    Args:
        images: the images that were searched for near-duplicates.
        similarity: the result; its indices are those of `images`.
    """
    sequences = (
        _measure_sequence(label, rows, images, similarity) for label, rows in _sort_by_number(images, similarity)
    )
    return [sequence for sequence in sequences if sequence]


def _sort_by_number(images: Sequence[ImageInfo], similarity: SimilaritySearch) -> Iterator[tuple[str, np.ndarray]]:
    """Yield, for each class, rows of `similarity.vectors` in the order of the last number in the file names."""
    numbered: dict[str, list[tuple[int, int]]] = {}
    for row, index in enumerate(similarity.searched_rows):
        file = images[index].file
        if numbers := re.findall(r"\d+", file.path.stem):
            numbered.setdefault(file.label, []).append((int(numbers[-1]), row))
    for label, numbered_rows in sorted(numbered.items()):
        if len(numbered_rows) >= MIN_NUMBERED_IMAGES:
            yield label, np.array([row for _, row in sorted(numbered_rows)])


def _measure_sequence(
    label: str, rows: np.ndarray, images: Sequence[ImageInfo], similarity: SimilaritySearch
) -> FrameSequence | None:
    """Compare each image with the next and with a random one; None if consecutive images are not more alike."""
    current, following = rows[:-1], rows[1:]
    random = np.random.default_rng(0).permutation(rows)[: len(current)]
    usable = (random != current) & (random != following)
    vectors = similarity.vectors
    closer = np.einsum("ij,ij->i", vectors[current], vectors[following] - vectors[random])[usable] > 0
    if closer.mean() < MIN_CLOSER_SHARE or scipy_stats.binomtest(int(closer.sum()), len(closer)).pvalue > MAX_P_VALUE:
        return None
    splits = np.array([images[index].file.split for index in similarity.searched_rows])
    separated = int((splits[current] != splits[following]).sum())
    return FrameSequence(label=label, closer_share=float(closer.mean()), separated_pairs=separated)


def check(sequences: Sequence[FrameSequence]) -> list[Finding]:
    """Note that the numbers may be those of a recording, where the splits separate consecutive images."""
    separated = [sequence for sequence in sequences if sequence.separated_pairs]
    if not separated:
        return []
    named = join_first([f"{sequence.label} ({sequence.closer_share:.0%} of the time)" for sequence in separated], 6)
    pairs = sum(sequence.separated_pairs for sequence in separated)
    text = (
        f"Images with consecutive numbers look more alike than random images of their class: {named}. "
        f"{pluralize(pairs, 'pair')} of consecutive images lie in different splits. If the numbers follow a recording, "
        "split by recording, not by image."
    )
    return [Finding(severity="note", kind="running numbers", text=text)]
