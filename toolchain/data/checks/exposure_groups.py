"""Find exposure groups in file names: images of one film, patient or part, which a random split would separate.

A pattern is accepted only if the images of a group look more alike than other images of their class. A name such as
000123.png, or one that only names the class, is no group.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats as scipy_stats

from toolchain.config.dataset import Domain
from toolchain.data.checks.finding import Finding, Severity
from toolchain.data.checks.folder_contents import ImageFile
from toolchain.data.checks.near_duplicates import SimilaritySearch
from toolchain.data.checks.thumbnails import ImageInfo
from toolchain.data.checks.wording import join_first, pluralize

# Tried in this order: copies made by an augmentation service; "name (2)"; the first one, two or three words of a name
# whose words are separated; seq03frame0012. Coarse before fine: patient12 before patient12-left.
FILE_NAME_PATTERNS = (
    r"^(.+)\.rf\.",
    r"^(.+?)(?: ?\(\d+\))?\.[^.]+$",
    r"^([^_ -]+)[_ -]",
    r"^([^_ -]+[_ -]+[^_ -]+)[_ -]",
    r"^([^_ -]+[_ -]+[^_ -]+[_ -]+[^_ -]+)[_ -]",
    r"^([A-Za-z]+\d+)[A-Za-z]+\d+",
)
MIN_GROUPS = 8  # groups to compare; with fewer, a coincidence could pass for a rule
MAX_GROUP_SHARE = 0.5  # of a class: a larger group names the class, not an exposure
MIN_GROUPED_SHARE = 0.05  # of the images that share their group with another
MIN_WIN_RATE = 0.75  # how often two images of a group must be more alike than one of them and another of its class
MAX_P_VALUE = 1e-4  # of the groups whose images are more alike, if names meant nothing
COMPARISONS_PER_GROUP = 5  # the same for all groups, so that large groups do not outvote the others


@dataclass(frozen=True, kw_only=True)
class ExposureGroups:
    """Image files by exposure."""

    pattern: str  # "": the dataset itself names the groups
    inferred: bool  # False: the pattern is the domain's own
    members: Mapping[str, Sequence[ImageFile]]  # at least two per group


def find(domain: Domain, images: Sequence[ImageInfo], similarity: SimilaritySearch) -> ExposureGroups | None:
    """Group images as the dataset names it, by the domain's own pattern, or by one that fits both file names and images.

    Args:
        domain: its `group_pattern` is used if it has one.
        images: the images that were searched for near-duplicates.
        similarity: the result; its indices are those of `images`.

    Returns:
        The groups; None if no pattern fits, or the domain's own is not valid (`folder_contents` reports that).
    """
    files = [image.file for image in images]
    if any(file.group for file in files):
        return ExposureGroups(pattern="", inferred=False, members=_group_by_column(files))
    if domain.group_pattern:
        try:
            members = _group_by_name(domain.group_pattern, files)
        except (re.error, IndexError):
            return None
        return ExposureGroups(pattern=domain.group_pattern, inferred=False, members=members)
    for pattern in FILE_NAME_PATTERNS:
        members = _group_by_name(pattern, files)
        grouped = sum(map(len, members.values()))
        if grouped >= MIN_GROUPED_SHARE * len(files) and _groups_look_alike(pattern, images, similarity):
            return ExposureGroups(pattern=pattern, inferred=True, members=members)
    return None


def _group_by_column(files: Sequence[ImageFile]) -> dict[str, list[ImageFile]]:
    groups: dict[str, list[ImageFile]] = {}
    for file in files:
        if file.group:
            groups.setdefault(file.group, []).append(file)
    return {name: group for name, group in groups.items() if len(group) > 1}


def _group_by_name(pattern: str, files: Sequence[ImageFile]) -> dict[str, list[ImageFile]]:
    groups: dict[str, list[ImageFile]] = {}
    for file in files:
        match = re.search(pattern, file.path.name)
        if match and match[1] is not None:
            groups.setdefault(match[1], []).append(file)
    return {name: group for name, group in groups.items() if len(group) > 1}


def _groups_look_alike(pattern: str, images: Sequence[ImageInfo], similarity: SimilaritySearch) -> bool:
    """Test whether images of a group are more alike than others of the same class, by a sign test over the groups."""
    win_rates = np.array(list(_win_rates(pattern, images, similarity)))
    if len(win_rates) < MIN_GROUPS or win_rates.mean() < MIN_WIN_RATE:
        return False
    decided = win_rates[win_rates != 0.5]
    test = scipy_stats.binomtest(int((decided > 0.5).sum()), len(decided), alternative="greater")
    return bool(test.pvalue < MAX_P_VALUE)


def _win_rates(pattern: str, images: Sequence[ImageInfo], similarity: SimilaritySearch) -> Iterator[float]:
    """Yield, for each group, how often two of its images are more alike than one of them and another of its class."""
    vectors, rng = similarity.vectors, np.random.default_rng(0)
    for group, others in _comparable_groups(pattern, images, similarity):
        comparisons = min(COMPARISONS_PER_GROUP, len(group) * (len(group) - 1) // 2)
        wins = 0
        for _ in range(comparisons):
            first, second = rng.choice(group, 2, replace=False)
            other = rng.choice(others)
            wins += int(vectors[first] @ vectors[second] > vectors[first] @ vectors[other])
        yield wins / comparisons


def _comparable_groups(
    pattern: str, images: Sequence[ImageInfo], similarity: SimilaritySearch
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield each group's images of one class, and the other images of that class: rows of `similarity.vectors`."""
    matches = [re.search(pattern, images[index].file.path.name) for index in similarity.searched_rows]
    labels = np.array([images[index].file.label for index in similarity.searched_rows])
    names = np.array([(match[1] or "") if match else "" for match in matches])
    for label in np.unique(labels):
        rows = np.flatnonzero((labels == label) & (names != ""))
        order = np.argsort(names[rows], kind="stable")
        starts = np.flatnonzero(names[rows[order]][1:] != names[rows[order]][:-1]) + 1
        for group in np.split(rows[order], starts):
            if 1 < len(group) <= MAX_GROUP_SHARE * len(rows):
                yield group, rows[names[rows] != names[group[0]]]


def check(groups: ExposureGroups | None, *, has_own_splits: bool) -> list[Finding]:
    """Report groups that lie in several splits; `has_own_splits`: the folder brings its splits, none is drawn here."""
    if groups is None:
        return []
    source = repr(groups.pattern) if groups.pattern else "the group column"
    if not groups.members:
        text = (
            f"group_pattern {groups.pattern!r} puts no two files into one group. Compare it with the file names, and correct "
            "it in the domain."
            if groups.pattern
            else "The group column puts no two files into one group. Correct it, or leave it out."
        )
        return [Finding(severity="warning", kind="groups", text=text)]
    divided = {
        name: members for name, members in groups.members.items() if len({member.split for member in members}) > 1
    }
    if not divided:
        text = (
            f"{pluralize(len(groups.members), 'exposure group')} by {source}; each lies within one split, as it should."
        )
        return [Finding(severity="note", kind="groups", text=text)]
    leaked = sum(
        member.split == "test"
        for members in divided.values()
        if any(other.split == "train" for other in members)
        for member in members
    )
    named = join_first(
        [f"{name} ({len(members)})".encode(errors="backslashreplace").decode() for name, members in divided.items()]
    )
    alike = "whose images look alike " if groups.inferred else ""
    advice = (
        "split the folder again, by group"
        if has_own_splits or not groups.pattern
        else f"set group_pattern = '{groups.pattern}' in the domain"
    )
    text = (
        f"{len(divided):,} of {len(groups.members):,} groups by {source} {alike}lie in more than one split: "
        f"{named}. In all, {pluralize(leaked, 'test image')} of such groups have another image of the group in training. If a "
        f"group is one exposure, {advice}."
    )
    severity: Severity = "warning" if groups.inferred else "severe"
    files = tuple(member.display_path for members in divided.values() for member in members)
    return [Finding(severity=severity, kind="groups", text=text, files=files)]
