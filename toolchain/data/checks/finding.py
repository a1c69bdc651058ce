"""What an examination hands over: findings in words, the counts behind them, and the pictures that are copies.

Everything here is plain data, so that it can be written as JSON, printed and drawn without the pictures at hand.
"""

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

Severity = Literal["severe", "warning", "note"]
SEVERITIES: tuple[Severity, ...] = ("severe", "warning", "note")


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One thing worth knowing: what it is, how many, and what to do next."""

    severity: Severity
    kind: str
    text: str
    files: tuple[str, ...] = ()  # as `shown` writes them, relative to the folder


@dataclass(frozen=True, kw_only=True)
class DuplicateImage:
    """A picture among its copies."""

    file: str
    label: str
    split: str  # "" where the folder could not be split


@dataclass(frozen=True, kw_only=True)
class DuplicateGroup:
    """Pictures that show the same: pixel by pixel, or scaled, encoded again, brightened or mirrored."""

    exact: bool
    mirrored: bool
    members: tuple[DuplicateImage, ...]

    @property
    def has_label_conflict(self) -> bool:
        """Whether they have different labels."""
        return len({member.label for member in self.members}) > 1

    @property
    def crosses_splits(self) -> bool:
        """Whether they lie on two sides of a split."""
        return len({member.split for member in self.members}) > 1


@dataclass(frozen=True, kw_only=True)
class SizeCount:
    """How many pictures have one size."""

    width: int
    height: int
    pictures: int


@dataclass(frozen=True, kw_only=True)
class ClassCount:
    """One class in numbers."""

    label: str
    pictures: Mapping[str, int]  # by split
    recall_reach: float | None  # half the width of the 95 % interval on its recall, at worst; None: no test picture


@dataclass(frozen=True, kw_only=True)
class DatasetCheck:
    """All that an examination found out. Worst findings and worst copies come first."""

    domain: str
    folder: str  # as `shown` writes it
    mode: str
    pictures: int  # that can be read
    unreadable: int
    ignored: int
    classes: tuple[ClassCount, ...]
    sizes: tuple[SizeCount, ...]  # most frequent first
    modes: Mapping[str, int]  # Pillow's, as the files hold them
    findings: tuple[Finding, ...]
    copies: tuple[DuplicateGroup, ...]
    searched: int  # pictures among which near duplicates were looked for
    group_pattern: str  # the domain's, or the one suggested
    smallest_difference: float | None  # of accuracy that the test split can show; None: no test split
    seconds: float

    @property
    def has_severe_finding(self) -> bool:
        """Whether anything was found that should stop a training."""
        return any(finding.severity == "severe" for finding in self.findings)


def to_display_path(path: Path) -> str:
    r"""A path as plain text for any terminal, JSON or page: bytes that are no text and control characters as \xNN."""
    text = os.fsencode(path.as_posix()).replace(b"\\", b"\\x5c").decode("utf-8", "backslashreplace")
    return "".join(c if c.isprintable() else "".join(f"\\x{b:02x}" for b in c.encode()) for c in text)


def from_display_path(name: str) -> Path:
    """The path that `shown` wrote."""
    raw = re.sub(rb"\\x([0-9a-f]{2})", lambda found: bytes([int(found[1], 16)]), name.encode())
    return Path(os.fsdecode(raw))


def join_first(names: Sequence[str], most: int = 3) -> str:
    """The first few of many names, and how many more there are."""
    rest = f" and {len(names) - most:,} more" if len(names) > most else ""
    return ", ".join(names[:most]) + rest


def pluralize(count: int, one: str = "picture", several: str = "") -> str:
    """A count with its noun: 1 picture, 20,000 pictures."""
    return f"{count:,} {one if count == 1 else several or one + 's'}"
