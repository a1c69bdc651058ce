"""Define the result of a dataset check: findings in words, the counts behind them, and the groups of duplicates.

All of it is plain data, so that it can be written as JSON, printed and laid out without the images at hand.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

Severity = Literal["severe", "warning", "note"]
SEVERITIES: tuple[Severity, ...] = ("severe", "warning", "note")


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One problem or fact: what it is, how many images it concerns, and what to do next."""

    severity: Severity
    kind: str
    text: str
    files: tuple[str, ...] = ()  # display paths, relative to the folder


@dataclass(frozen=True, kw_only=True)
class DuplicateImage:
    """One image of a group of duplicates."""

    file: str
    label: str
    split: str  # "" where the folder could not be split


@dataclass(frozen=True, kw_only=True)
class DuplicateGroup:
    """Images that show the same: with identical pixels, or scaled, encoded again, brightened or mirrored."""

    exact: bool
    mirrored: bool
    members: tuple[DuplicateImage, ...]

    @property
    def has_label_conflict(self) -> bool:
        """Whether the images have different labels."""
        return len({member.label for member in self.members}) > 1

    @property
    def crosses_splits(self) -> bool:
        """Whether the images lie in different splits."""
        return len({member.split for member in self.members}) > 1


@dataclass(frozen=True, kw_only=True)
class SizeCount:
    """How many images have one size in pixels."""

    width: int
    height: int
    pictures: int


@dataclass(frozen=True, kw_only=True)
class ClassCount:
    """How many images a class has, and how precisely its recall can be measured."""

    label: str
    pictures: Mapping[str, int]  # by split
    recall_reach: float | None  # half the 95 % interval of its recall, where it is widest; None: no test images


@dataclass(frozen=True, kw_only=True)
class DatasetCheck:
    """The result of all checks of a dataset; the most severe findings and duplicates come first."""

    domain: str
    folder: str  # as a display path
    mode: str
    pictures: int  # images that can be read
    unreadable: int
    ignored: int  # files that are not used
    classes: tuple[ClassCount, ...]
    sizes: tuple[SizeCount, ...]  # most frequent first
    modes: Mapping[str, int]  # images by Pillow's mode, as stored in the file
    findings: tuple[Finding, ...]
    copies: tuple[DuplicateGroup, ...]
    searched: int  # images that were compared with each other for near-duplicates
    group_pattern: str  # the domain's own, or the one inferred from the file names; "": none
    smallest_difference: float | None  # in accuracy, detectable on the test split; None: no test split
    seconds: float

    @property
    def has_severe_finding(self) -> bool:
        """Whether there is a finding that should be put right before training."""
        return any(finding.severity == "severe" for finding in self.findings)
