"""Running numbers that follow a recording: neighbours look alike, and a random split puts them on both of its sides.

Numbers alone are no group, as nothing says where one exposure ends; so this only says what was seen.
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats as scipy_stats

from toolchain.data.checks.finding import Finding, join_first, pluralize
from toolchain.data.checks.near_duplicates import SimilaritySearch
from toolchain.data.checks.thumbnails import ImageInfo

MIN_NUMBERED_IMAGES = 50  # numbered pictures of a class; with fewer, chance reaches `ALIKE`
MIN_CLOSER_SHARE = (
    0.6  # how often a neighbour must be more alike than a stranger; solar modules without a fault: 0.69, others 0.5
)
MAX_P_VALUE = 1e-6  # of so many, if the order meant nothing


@dataclass(frozen=True, kw_only=True)
class FrameSequence:
    """A class whose neighbours look alike."""

    label: str
    closer_share: float  # of pictures that are more like the next one than like a stranger
    separated_pairs: int  # neighbours on two sides of a split
    neighbour_pairs: int


def find(looks: Sequence[ImageInfo], found: SimilaritySearch) -> list[FrameSequence]:
    """Classes whose pictures of neighbouring numbers look alike; `found` indexes `looks`."""
    every = (_measured(label, rows, looks, found) for label, rows in _numbered(looks, found))
    return [one for one in every if one]


def _numbered(looks: Sequence[ImageInfo], found: SimilaritySearch) -> Iterator[tuple[str, np.ndarray]]:
    """Rows of `found.vectors` by class, in the order of the last number in their names."""
    rows: dict[str, list[tuple[int, int]]] = {}
    for row, index in enumerate(found.searched_rows):
        entry = looks[index].file
        if numbers := re.findall(r"\d+", entry.path.stem):
            rows.setdefault(entry.label, []).append((int(numbers[-1]), row))
    for label, own in sorted(rows.items()):
        if len(own) >= MIN_NUMBERED_IMAGES:
            yield label, np.array([row for _, row in sorted(own)])


def _measured(
    label: str, rows: np.ndarray, looks: Sequence[ImageInfo], found: SimilaritySearch
) -> FrameSequence | None:
    one, following = rows[:-1], rows[1:]
    stranger = np.random.default_rng(0).permutation(rows)[: len(one)]
    usable = (stranger != one) & (stranger != following)
    vectors = found.vectors
    closer = np.einsum("ij,ij->i", vectors[one], vectors[following] - vectors[stranger])[usable] > 0
    if closer.mean() < MIN_CLOSER_SHARE or scipy_stats.binomtest(int(closer.sum()), len(closer)).pvalue > MAX_P_VALUE:
        return None
    splits = np.array([looks[index].file.split for index in found.searched_rows])
    torn = int((splits[one] != splits[following]).sum())
    return FrameSequence(label=label, closer_share=float(closer.mean()), separated_pairs=torn, neighbour_pairs=len(one))


def check(sequences: Sequence[FrameSequence]) -> list[Finding]:
    """What was seen, as a note: the numbers may be those of a recording."""
    torn = [one for one in sequences if one.separated_pairs]
    if not torn:
        return []
    named = join_first([f"{one.label} ({one.closer_share:.0%} of the time)" for one in torn], 6)
    count = sum(one.separated_pairs for one in torn)
    text = (
        f"Pictures of neighbouring numbers are more alike than strangers of their class: {named}; {pluralize(count, 'pair')} "
        "of neighbours lie in different splits. If the numbers follow a recording, split it by recording, not by picture."
    )
    return [Finding(severity="note", kind="running numbers", text=text)]
