"""Write paths, lists and counts the way findings say them."""

import os
import re
from collections.abc import Sequence
from pathlib import Path


def to_display_path(path: Path) -> str:
    r"""Return a path as plain text for any terminal, JSON file or page.

    Bytes that are not text and control characters are written as \xNN; `from_display_path` reads them back.
    """
    text = os.fsencode(path.as_posix()).replace(b"\\", b"\\x5c").decode("utf-8", "backslashreplace")
    return "".join(c if c.isprintable() else "".join(f"\\x{b:02x}" for b in c.encode()) for c in text)


def from_display_path(name: str) -> Path:
    """Return the path that `to_display_path` wrote."""
    raw = re.sub(rb"\\x([0-9a-f]{2})", lambda match: bytes([int(match[1], 16)]), name.encode())
    return Path(os.fsdecode(raw))


def join_first(names: Sequence[str], count: int = 3) -> str:
    """Return the first `count` names, and how many more there are: "a, b, c and 12 more"."""
    rest = f" and {len(names) - count:,} more" if len(names) > count else ""
    return ", ".join(names[:count]) + rest


def pluralize(count: int, singular: str = "image", plural: str = "") -> str:
    """Return a count with its noun: "1 image", "20,000 images"."""
    return f"{count:,} {singular if count == 1 else plural or singular + 's'}"
