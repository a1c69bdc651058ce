"""Exposure groups in file names: pictures of one film, patient or part, which a random split tears apart.

A pattern is believed only where pictures that it puts together really look alike, more so than others of their class;
a name such as 000123.png, or one that says no more than the class, is no group.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats as scipy_stats

from toolchain.config.dataset import Domain
from toolchain.data.checks.finding import Finding, Severity, join_first, pluralize
from toolchain.data.checks.folder_contents import ImageFile
from toolchain.data.checks.near_duplicates import SimilaritySearch
from toolchain.data.checks.thumbnails import ImageInfo

# Tried in turn: copies made by an augmentation service; "name (2)"; the first one, two or three words of a name whose
# words are set apart; seq03frame0012. Coarse before fine: patient12 before patient12-left.
FILE_NAME_PATTERNS = (
    r"^(.+)\.rf\.",
    r"^(.+?)(?: ?\(\d+\))?\.[^.]+$",
    r"^([^_ -]+)[_ -]",
    r"^([^_ -]+[_ -]+[^_ -]+)[_ -]",
    r"^([^_ -]+[_ -]+[^_ -]+[_ -]+[^_ -]+)[_ -]",
    r"^([A-Za-z]+\d+)[A-Za-z]+\d+",
)
MIN_GROUPS = 8  # to compare; below, a chance could look like a rule
MAX_GROUP_SHARE = 0.5  # of a class: more than that names the class, not an exposure
MIN_GROUPED_SHARE = 0.05  # of the pictures that have another of their group
MIN_WIN_RATE = 0.75  # how often two of a group must be more alike than one of them and a stranger of its class
MAX_P_VALUE = 1e-4  # of as many groups being more alike than not, if names meant nothing
COMPARISONS_PER_GROUP = 5  # comparisons a group, so that large groups do not outvote the others


@dataclass(frozen=True, kw_only=True)
class ExposureGroups:
    """Pictures by exposure."""

    pattern: str
    inferred: bool  # False: the domain's own
    members: Mapping[str, Sequence[ImageFile]]  # two at least


def find(domain: Domain, looks: Sequence[ImageInfo], found: SimilaritySearch) -> ExposureGroups | None:
    """Groups by the domain's own pattern, or by one that fits the names and the pictures; `found` indexes `looks`."""
    entries = [look.file for look in looks]
    if domain.group_pattern:
        try:
            return ExposureGroups(
                pattern=domain.group_pattern, inferred=False, members=_grouped(domain.group_pattern, entries)
            )
        except (re.error, IndexError):  # said elsewhere
            return None
    for pattern in FILE_NAME_PATTERNS:
        members = _grouped(pattern, entries)
        if sum(map(len, members.values())) >= MIN_GROUPED_SHARE * len(entries) and _alike(pattern, looks, found):
            return ExposureGroups(pattern=pattern, inferred=True, members=members)
    return None


def _grouped(pattern: str, entries: Sequence[ImageFile]) -> dict[str, list[ImageFile]]:
    groups: dict[str, list[ImageFile]] = {}
    for entry in entries:
        named = re.search(pattern, entry.path.name)
        if named and named[1] is not None:
            groups.setdefault(named[1], []).append(entry)
    return {name: group for name, group in groups.items() if len(group) > 1}


def _alike(pattern: str, looks: Sequence[ImageInfo], found: SimilaritySearch) -> bool:
    """Whether members of a group are more alike than strangers of the same class, in a sign test over the groups."""
    wins = np.array(list(_wins(pattern, looks, found)))
    if len(wins) < MIN_GROUPS or wins.mean() < MIN_WIN_RATE:
        return False
    decided = wins[wins != 0.5]
    test = scipy_stats.binomtest(int((decided > 0.5).sum()), len(decided), alternative="greater")
    return bool(test.pvalue < MAX_P_VALUE)


def _wins(pattern: str, looks: Sequence[ImageInfo], found: SimilaritySearch) -> Iterator[float]:
    """For each group: how often two members are more alike than one of them and a stranger; a share."""
    random = np.random.default_rng(0)
    for own, strangers in _comparable(pattern, looks, found):
        count = min(COMPARISONS_PER_GROUP, len(own) * (len(own) - 1) // 2)
        won = 0
        for _ in range(count):
            one, other = random.choice(own, 2, replace=False)
            stranger = random.choice(strangers)
            won += int(found.vectors[one] @ found.vectors[other] > found.vectors[one] @ found.vectors[stranger])
        yield won / count


def _comparable(
    pattern: str, looks: Sequence[ImageInfo], found: SimilaritySearch
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Each group's members of one class, and the strangers of that class: rows of `found.vectors`."""
    named = [re.search(pattern, looks[row].file.path.name) for row in found.searched_rows]
    labels = np.array([looks[row].file.label for row in found.searched_rows])
    names = np.array([(match[1] or "") if match else "" for match in named])
    for label in np.unique(labels):
        rows = np.flatnonzero((labels == label) & (names != ""))
        order = np.argsort(names[rows], kind="stable")
        parts = np.split(rows[order], np.flatnonzero(names[rows[order]][1:] != names[rows[order]][:-1]) + 1)
        for own in parts:
            if 1 < len(own) <= MAX_GROUP_SHARE * len(rows):
                yield own, rows[names[rows] != names[own[0]]]


def check(groups: ExposureGroups | None, *, given: bool) -> list[Finding]:
    """What the groups mean for the splits; `given`: the splits are the folder's own."""
    if groups is None:
        return []
    if not groups.members:
        text = f"group_pattern {groups.pattern!r} puts no two files together; compare it with the file names."
        return [Finding(severity="warning", kind="groups", text=text)]
    torn = {name: m for name, m in groups.members.items() if len({entry.split for entry in m}) > 1}
    if not torn:
        text = f"{pluralize(len(groups.members), 'exposure group')} by {groups.pattern!r}, none of them torn apart by the splits."
        return [Finding(severity="note", kind="groups", text=text)]
    known = {entry.display_path for m in torn.values() if any(e.split == "train" for e in m) for entry in m}
    entries = [entry for m in torn.values() for entry in m]
    leaked = sum(entry.split == "test" and entry.display_path in known for entry in entries)
    named = join_first([f"{name} ({len(m)})".encode(errors="backslashreplace").decode() for name, m in torn.items()])
    looks = "whose pictures look alike " if groups.inferred else ""
    advice = "split the folder anew, by group" if given else f"set group_pattern = '{groups.pattern}' in the domain"
    text = (
        f"{len(torn):,} of {len(groups.members):,} groups by {groups.pattern!r} {looks}lie in more than one split: "
        f"{named}; {pluralize(leaked, 'test picture')} thus have a sister in training. If a group is one exposure, {advice}."
    )
    severity: Severity = "warning" if groups.inferred else "severe"
    files = tuple(entry.display_path for entry in entries)
    return [Finding(severity=severity, kind="groups", text=text, files=files)]
