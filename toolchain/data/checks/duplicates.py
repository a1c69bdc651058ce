"""Findings on pictures that are there more than once: under different labels, on two sides of a split, or to no use.

A test picture that was trained on is no test, and a picture with two labels teaches neither.
"""

from collections import Counter
from collections.abc import Iterable, Sequence

import numpy as np
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from toolchain.data.checks.finding import Copies, Finding, Member, Severity, listed, many
from toolchain.data.checks.near_duplicates import Search
from toolchain.data.checks.thumbnails import Look

MUCH = 0.01  # share of a split that has copies in training: its accuracy may be flattered by a point
FEW = 3  # groups named in a sentence


def distinct(looks: Sequence[Look]) -> list[list[Look]]:
    """Readable pictures, those of the same pixels together."""
    groups: dict[str, list[Look]] = {}
    for look in looks:
        if not look.problem:
            groups.setdefault(look.pixels, []).append(look)
    return list(groups.values())


def exact(groups: Iterable[Sequence[Look]]) -> list[Copies]:
    """Groups of the same pixels."""
    return [Copies(exact=True, mirrored=False, members=_members(group)) for group in groups if len(group) > 1]


def near(groups: Sequence[Sequence[Look]], found: Search) -> list[Copies]:
    """Groups that hang together by near duplicates; `found` indexes the groups of the same pixels."""
    if not found.pairs:
        return []
    left, right, mirrored = (np.array(side) for side in zip(*found.pairs, strict=True))
    graph = coo_array((np.ones(len(left), np.int8), (left, right)), shape=(len(groups), len(groups)))
    parts = connected_components(graph, directed=False)[1]
    turned = set(parts[left[mirrored]])
    together: dict[int, list[Look]] = {}
    for index in sorted({*left.tolist(), *right.tolist()}):
        together.setdefault(int(parts[index]), []).extend(groups[index])
    return [Copies(exact=False, mirrored=part in turned, members=_members(group)) for part, group in together.items()]


def ordered(copies: Iterable[Copies]) -> tuple[Copies, ...]:
    """Worst first: label conflicts, then leaks, the same pixels before near duplicates."""
    return tuple(sorted(copies, key=_rank))


def _rank(group: Copies) -> tuple[bool, bool, bool, bool, str]:
    worst = group.exact and group.conflicting
    return not worst, not group.leaking, not group.conflicting, not group.exact, group.members[0].file


def _members(group: Sequence[Look]) -> tuple[Member, ...]:
    found = (Member(file=look.entry.name, label=look.entry.label, split=look.entry.split) for look in group)
    return tuple(sorted(found, key=lambda member: (member.split, member.label, member.file)))


def findings(copies: Sequence[Copies], splits: Counter[str]) -> list[Finding]:
    """All findings on copies; `splits` are the pictures of each split."""
    same, alike = [c for c in copies if c.exact], [c for c in copies if not c.exact]
    return [
        *_conflicts(same, alike),
        *_leaks(same, "the very same picture", splits),
        *_leaks(alike, "a nearly equal picture", splits),
        *_idle(same, alike),
    ]


def _finding(severity: Severity, kind: str, text: str, copies: Sequence[Copies]) -> Finding:
    files = tuple(member.file for group in copies for member in group.members)
    return Finding(severity=severity, kind=kind, text=text, files=files)


def _named(copies: Sequence[Copies]) -> str:
    return listed([" = ".join(member.file for member in group.members[:FEW]) for group in copies], FEW)


def _conflicts(same: Sequence[Copies], alike: Sequence[Copies]) -> list[Finding]:
    found = []
    if two := [c for c in same if c.conflicting]:
        text = f"{many(len(two))} with different labels for the very same pixels: {_named(two)}; decide which is right and remove the others."
        found.append(_finding("severe", "label conflict", text, two))
    if two := [c for c in alike if c.conflicting]:
        text = (
            f"{many(len(two), 'group')} of nearly equal pictures with different labels: {_named(two)}; look at them, "
            "one of the labels may be wrong."
        )
        found.append(_finding("warning", "near label conflict", text, two))
    return found


def _leaks(copies: Sequence[Copies], what: str, splits: Counter[str]) -> list[Finding]:
    """Copies on two sides of a split, counted on the side that is to judge."""
    across = [c for c in copies if c.leaking]
    if not across:
        return []
    exact = copies[0].exact
    judged: Counter[str] = Counter()
    for group in across:
        sides = {member.split for member in group.members}
        judged.update(m.split for m in group.members if m.split != "train" and ("train" in sides or m.split == "test"))
    told = [f"{n:,} of {splits[split]:,} in {split} ({n / splits[split]:.1%})" for split, n in sorted(judged.items())]
    much = any(n >= MUCH * splits[split] for split, n in judged.items())
    text = (
        f"{' and '.join(told)} have {what} on another side of the split, so that accuracy is flattered: "
        f"{_named(across)}; remove one of each, or keep them on one side (group_pattern)."
    )
    return [_finding("severe" if exact or much else "warning", "leak" if exact else "near leak", text, across)]


def _idle(same: Sequence[Copies], alike: Sequence[Copies]) -> list[Finding]:
    """Copies within one split: they only count twice."""
    found = []
    for copies, what in ((same, "the very same pixels"), (alike, "nearly equal pictures")):
        inside = [c for c in copies if not c.leaking and not c.conflicting]
        if inside:
            further = sum(len(c.members) - 1 for c in inside)
            text = f"{many(len(inside), 'group')} of {what} within a split; {many(further)} could go, as they only count again: {_named(inside)}."
            found.append(_finding("note", "copies" if copies is same else "near copies", text, inside))
    return found
