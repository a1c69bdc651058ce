"""Check for duplicates: label conflicts, leakage across splits, and copies that only count twice.

A test image that was trained on tests nothing, and an image with two labels teaches neither.
"""

from collections import Counter
from collections.abc import Iterable, Sequence

import numpy as np
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from toolchain.data.checks.finding import DuplicateGroup, DuplicateImage, Finding, Severity
from toolchain.data.checks.near_duplicates import SimilaritySearch
from toolchain.data.checks.thumbnails import ImageInfo
from toolchain.data.checks.wording import join_first, pluralize

SEVERE_LEAK_SHARE = 0.01  # of a split with duplicates in training: its accuracy may be a point too high
MAX_NAMED_GROUPS = 3  # groups named in a sentence


def group_by_pixels(images: Sequence[ImageInfo]) -> list[list[ImageInfo]]:
    """Group the readable images by identical pixels."""
    groups: dict[str, list[ImageInfo]] = {}
    for image in images:
        if not image.problem:
            groups.setdefault(image.pixel_hash, []).append(image)
    return list(groups.values())


def exact_groups(groups: Iterable[Sequence[ImageInfo]]) -> list[DuplicateGroup]:
    """Return the groups of at least two images with identical pixels."""
    return [
        DuplicateGroup(exact=True, mirrored=False, members=_list_members(group)) for group in groups if len(group) > 1
    ]


def near_groups(groups: Sequence[Sequence[ImageInfo]], similarity: SimilaritySearch) -> list[DuplicateGroup]:
    """Join near-duplicate pairs to groups.

    Args:
        groups: images by identical pixels.
        similarity: near-duplicate pairs; its indices are those of `groups`.
    """
    if not similarity.pairs:
        return []
    left, right, mirrored = (np.array(column) for column in zip(*similarity.pairs, strict=True))
    graph = coo_array((np.ones(len(left), np.int8), (left, right)), shape=(len(groups), len(groups)))
    components = connected_components(graph, directed=False)[1]
    mirrored_components = set(components[left[mirrored]])
    images_by_component: dict[int, list[ImageInfo]] = {}
    for index in sorted({*left.tolist(), *right.tolist()}):
        images_by_component.setdefault(int(components[index]), []).extend(groups[index])
    return [
        DuplicateGroup(exact=False, mirrored=component in mirrored_components, members=_list_members(images))
        for component, images in images_by_component.items()
    ]


def sort_by_severity(groups: Iterable[DuplicateGroup]) -> tuple[DuplicateGroup, ...]:
    """Sort the most severe first: label conflicts, then leakage; identical pixels before near-duplicates."""
    return tuple(sorted(groups, key=_rank))


def _rank(group: DuplicateGroup) -> tuple[bool, bool, bool, bool, str]:
    exact_conflict = group.exact and group.has_label_conflict
    return (
        not exact_conflict,
        not group.crosses_splits,
        not group.has_label_conflict,
        not group.exact,
        group.members[0].file,
    )


def _list_members(images: Sequence[ImageInfo]) -> tuple[DuplicateImage, ...]:
    members = (
        DuplicateImage(file=image.file.display_path, label=image.file.label, split=image.file.split) for image in images
    )
    return tuple(sorted(members, key=lambda member: (member.split, member.label, member.file)))


def check(groups: Sequence[DuplicateGroup], split_sizes: Counter[str]) -> list[Finding]:
    """Return all findings about duplicates; `split_sizes` is the number of images in each split."""
    exact, near = [group for group in groups if group.exact], [group for group in groups if not group.exact]
    return [
        *_check_conflicts(exact, near),
        *_check_leakage(exact, "an identical image", split_sizes),
        *_check_leakage(near, "a near-duplicate", split_sizes),
        *_check_within_splits(exact, near),
    ]


def _finding(severity: Severity, kind: str, text: str, groups: Sequence[DuplicateGroup]) -> Finding:
    files = tuple(member.file for group in groups for member in group.members)
    return Finding(severity=severity, kind=kind, text=text, files=files)


def _name_groups(groups: Sequence[DuplicateGroup]) -> str:
    return join_first(
        [" = ".join(member.file for member in group.members[:MAX_NAMED_GROUPS]) for group in groups], MAX_NAMED_GROUPS
    )


def _check_conflicts(exact: Sequence[DuplicateGroup], near: Sequence[DuplicateGroup]) -> list[Finding]:
    """Report duplicates with different labels."""
    findings = []
    if conflicts := [group for group in exact if group.has_label_conflict]:
        text = (
            f"{pluralize(len(conflicts), 'group')} of identical images with different labels: {_name_groups(conflicts)}. "
            "Decide which label is right, and remove the other files."
        )
        findings.append(_finding("severe", "label conflict", text, conflicts))
    if conflicts := [group for group in near if group.has_label_conflict]:
        text = (
            f"{pluralize(len(conflicts), 'group')} of near-duplicates with different labels: {_name_groups(conflicts)}. "
            "Look at them: one of the labels may be wrong."
        )
        findings.append(_finding("warning", "near label conflict", text, conflicts))
    return findings


def _check_leakage(groups: Sequence[DuplicateGroup], duplicate: str, split_sizes: Counter[str]) -> list[Finding]:
    """Report duplicates in different splits, counted in the split that evaluates: test before validation."""
    leaks = [group for group in groups if group.crosses_splits]
    if not leaks:
        return []
    exact = groups[0].exact
    leaked: Counter[str] = Counter()
    for group in leaks:
        splits = {member.split for member in group.members}
        leaked.update(m.split for m in group.members if m.split != "train" and ("train" in splits or m.split == "test"))
    counts = [
        f"{n:,} of {pluralize(split_sizes[split])} in {split} ({n / split_sizes[split]:.1%})"
        for split, n in sorted(leaked.items())
    ]
    severe = any(n >= SEVERE_LEAK_SHARE * split_sizes[split] for split, n in leaked.items())
    text = (
        f"Leakage across splits: {' and '.join(counts)} have {duplicate} in another split, so accuracy is overestimated: "
        f"{_name_groups(leaks)}. Remove all but one of each, or keep them in one split (group_pattern)."
    )
    return [_finding("severe" if exact or severe else "warning", "leak" if exact else "near leak", text, leaks)]


def _check_within_splits(exact: Sequence[DuplicateGroup], near: Sequence[DuplicateGroup]) -> list[Finding]:
    """Note duplicates within one split, with the same label."""
    findings = []
    for groups, kind, noun in ((exact, "copies", "identical images"), (near, "near copies", "near-duplicates")):
        harmless = [group for group in groups if not group.crosses_splits and not group.has_label_conflict]
        if harmless:
            surplus = sum(len(group.members) - 1 for group in harmless)
            text = (
                f"{pluralize(len(harmless), 'group')} of {noun} within one split: {_name_groups(harmless)}. "
                f"{pluralize(surplus)} can be removed, as they only count twice."
            )
            findings.append(_finding("note", kind, text, harmless))
    return findings
