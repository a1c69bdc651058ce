"""Findings on pictures that are there more than once: under different labels, on two sides of a split, or to no use.

A test picture that was trained on is no test, and a picture with two labels teaches neither.
"""

from collections import Counter
from collections.abc import Iterable, Sequence

import numpy as np
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from toolchain.data.checks.finding import DuplicateGroup, DuplicateImage, Finding, Severity, join_first, pluralize
from toolchain.data.checks.near_duplicates import SimilaritySearch
from toolchain.data.checks.thumbnails import ImageInfo

SEVERE_LEAK_SHARE = 0.01  # share of a split that has copies in training: its accuracy may be flattered by a point
MAX_NAMED_GROUPS = 3  # groups named in a sentence


def group_by_pixels(looks: Sequence[ImageInfo]) -> list[list[ImageInfo]]:
    """Readable pictures, those of the same pixels together."""
    groups: dict[str, list[ImageInfo]] = {}
    for look in looks:
        if not look.problem:
            groups.setdefault(look.pixel_hash, []).append(look)
    return list(groups.values())


def exact_groups(groups: Iterable[Sequence[ImageInfo]]) -> list[DuplicateGroup]:
    """Groups of the same pixels."""
    return [DuplicateGroup(exact=True, mirrored=False, members=_members(group)) for group in groups if len(group) > 1]


def near_groups(groups: Sequence[Sequence[ImageInfo]], found: SimilaritySearch) -> list[DuplicateGroup]:
    """Groups that hang together by near duplicates; `found` indexes the groups of the same pixels."""
    if not found.pairs:
        return []
    left, right, mirrored = (np.array(side) for side in zip(*found.pairs, strict=True))
    graph = coo_array((np.ones(len(left), np.int8), (left, right)), shape=(len(groups), len(groups)))
    parts = connected_components(graph, directed=False)[1]
    turned = set(parts[left[mirrored]])
    together: dict[int, list[ImageInfo]] = {}
    for index in sorted({*left.tolist(), *right.tolist()}):
        together.setdefault(int(parts[index]), []).extend(groups[index])
    return [
        DuplicateGroup(exact=False, mirrored=part in turned, members=_members(group))
        for part, group in together.items()
    ]


def sort_by_severity(copies: Iterable[DuplicateGroup]) -> tuple[DuplicateGroup, ...]:
    """Worst first: label conflicts, then leaks, the same pixels before near duplicates."""
    return tuple(sorted(copies, key=_rank))


def _rank(group: DuplicateGroup) -> tuple[bool, bool, bool, bool, str]:
    worst = group.exact and group.has_label_conflict
    return not worst, not group.crosses_splits, not group.has_label_conflict, not group.exact, group.members[0].file


def _members(group: Sequence[ImageInfo]) -> tuple[DuplicateImage, ...]:
    found = (
        DuplicateImage(file=look.file.display_path, label=look.file.label, split=look.file.split) for look in group
    )
    return tuple(sorted(found, key=lambda member: (member.split, member.label, member.file)))


def check(copies: Sequence[DuplicateGroup], splits: Counter[str]) -> list[Finding]:
    """All findings on copies; `splits` are the pictures of each split."""
    same, alike = [c for c in copies if c.exact], [c for c in copies if not c.exact]
    return [
        *_conflicts(same, alike),
        *_leaks(same, "the very same picture", splits),
        *_leaks(alike, "a nearly equal picture", splits),
        *_idle(same, alike),
    ]


def _finding(severity: Severity, kind: str, text: str, copies: Sequence[DuplicateGroup]) -> Finding:
    files = tuple(member.file for group in copies for member in group.members)
    return Finding(severity=severity, kind=kind, text=text, files=files)


def _named(copies: Sequence[DuplicateGroup]) -> str:
    return join_first(
        [" = ".join(member.file for member in group.members[:MAX_NAMED_GROUPS]) for group in copies], MAX_NAMED_GROUPS
    )


def _conflicts(same: Sequence[DuplicateGroup], alike: Sequence[DuplicateGroup]) -> list[Finding]:
    found = []
    if two := [c for c in same if c.has_label_conflict]:
        text = f"{pluralize(len(two))} with different labels for the very same pixels: {_named(two)}; decide which is right and remove the others."
        found.append(_finding("severe", "label conflict", text, two))
    if two := [c for c in alike if c.has_label_conflict]:
        text = (
            f"{pluralize(len(two), 'group')} of nearly equal pictures with different labels: {_named(two)}; look at them, "
            "one of the labels may be wrong."
        )
        found.append(_finding("warning", "near label conflict", text, two))
    return found


def _leaks(copies: Sequence[DuplicateGroup], what: str, splits: Counter[str]) -> list[Finding]:
    """Copies on two sides of a split, counted on the side that is to judge."""
    across = [c for c in copies if c.crosses_splits]
    if not across:
        return []
    exact = copies[0].exact
    judged: Counter[str] = Counter()
    for group in across:
        sides = {member.split for member in group.members}
        judged.update(m.split for m in group.members if m.split != "train" and ("train" in sides or m.split == "test"))
    told = [f"{n:,} of {splits[split]:,} in {split} ({n / splits[split]:.1%})" for split, n in sorted(judged.items())]
    much = any(n >= SEVERE_LEAK_SHARE * splits[split] for split, n in judged.items())
    text = (
        f"{' and '.join(told)} have {what} on another side of the split, so that accuracy is flattered: "
        f"{_named(across)}; remove one of each, or keep them on one side (group_pattern)."
    )
    return [_finding("severe" if exact or much else "warning", "leak" if exact else "near leak", text, across)]


def _idle(same: Sequence[DuplicateGroup], alike: Sequence[DuplicateGroup]) -> list[Finding]:
    """Copies within one split: they only count twice."""
    found = []
    for copies, what in ((same, "the very same pixels"), (alike, "nearly equal pictures")):
        inside = [c for c in copies if not c.crosses_splits and not c.has_label_conflict]
        if inside:
            further = sum(len(c.members) - 1 for c in inside)
            text = f"{pluralize(len(inside), 'group')} of {what} within a split; {pluralize(further)} could go, "
            text += f"as they only count again: {_named(inside)}."
            found.append(_finding("note", "copies" if copies is same else "near copies", text, inside))
    return found
