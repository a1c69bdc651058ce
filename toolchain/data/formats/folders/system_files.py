"""Walk an image folder without what operating systems and programs leave in it.

Archives made on a Mac hold `__MACOSX/`, `._x.jpg` and `.DS_Store`; Windows writes `Thumbs.db` and `desktop.ini`; Jupyter
copies edited files to `.ipynb_checkpoints/`. None of these is ever a class or an image.
"""

import os
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

SYSTEM_NAMES = frozenset(  # in lower case; beside all names that start with a dot
    {
        "__macosx",
        "thumbs.db",
        "ehthumbs.db",
        "desktop.ini",
        "icon\r",
        "$recycle.bin",
        "system volume information",
        "@eadir",
    }
)
MAX_NAMED = 3


def is_system_name(name: str) -> bool:
    """Return whether a file or folder of this name is hidden or belongs to an operating system."""
    return name.startswith(".") or name.lower() in SYSTEM_NAMES


def list_folders(folder: Path) -> list[Path]:
    """List the folders directly in a folder, sorted, without system folders; links to folders are among them."""
    return sorted(path for path in folder.iterdir() if not is_system_name(path.name) and path.is_dir())


def walk_files(folder: Path) -> Iterator[Path]:
    """Yield the files at any depth, without system files; links to folders below `folder` are not followed."""
    for parent, folders, names in os.walk(folder):
        folders[:] = [name for name in folders if not is_system_name(name)]
        yield from (Path(parent, name) for name in names if not is_system_name(name))


def walk_linked_files(folder: Path, levels: int) -> Iterator[Path]:
    """Yield the files at any depth, without system files; links to folders are followed in the first `levels` levels."""
    if not levels:
        yield from walk_files(folder)
        return
    yield from (path for path in folder.iterdir() if not is_system_name(path.name) and not path.is_dir())
    for path in list_folders(folder):
        yield from walk_linked_files(path, levels - 1)


def list_system_files(folder: Path) -> tuple[Path, ...]:
    """List the system files at any depth, relative to `folder`, with all files in system folders."""
    relative = (Path(parent, name).relative_to(folder) for parent, _, names in os.walk(folder) for name in names)
    return tuple(sorted(path for path in relative if any(is_system_name(part) for part in path.parts)))


def describe_system_files(paths: Sequence[Path]) -> str:
    """Return how many system files are ignored and what they are; "" for none."""
    if not paths:
        return ""
    counts = Counter(next(_shorten(part) for part in path.parts if is_system_name(part)) for path in paths)
    names = [name for name, _ in sorted(counts.items(), key=lambda item: (-item[1], item[0]))]
    listed = ", ".join([*names[:MAX_NAMED], *(["..."] if len(names) > MAX_NAMED else [])])
    return f"{len(paths):,} system file{'s' if len(paths) > 1 else ''} ignored ({listed})"


def _shorten(name: str) -> str:
    """Return a name to count under: the files that a Mac keeps beside others are `._*`, other names stand for themselves."""
    text = "._*" if name.startswith("._") else name.rstrip("\r")
    return text.encode(errors="backslashreplace").decode()
