"""What runs keep beside their results: its size and last use, and its removal, the longest unused first.

A cached folder is one with a lock file, under `work/` (stages) or `data/` (decoded images). The lock file stays, so that a
run that waits for it and one that comes later still exclude each other.
"""

import contextlib
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from toolchain.core import files

CACHE_FOLDERS = ("work", "data")
USED_FILE = "caches.json"  # in a run's folder: what it used, relative to the folder of all runs


@dataclass(frozen=True)
class CacheEntry:
    """A cached folder."""

    folder: Path
    size_bytes: int
    last_used: float  # seconds since 1970
    kept_for: str  # the run that needs it, as "recipe/target"; "" for none


def list_entries(out: Path) -> list[CacheEntry]:
    """Return the cached folders that hold anything, the longest unused first.

    Args:
        out: folder of all runs.
    """
    runs = _read_runs(out)
    entries = []
    for lock in sorted(lock for name in CACHE_FOLDERS for lock in (out / name).rglob(files.LOCK_FILE)):
        size = sum(path.stat().st_size for path in lock.parent.rglob("*") if path.is_file())
        if size:
            relative = lock.parent.relative_to(out).as_posix()
            entries.append(CacheEntry(lock.parent, size, lock.stat().st_mtime, runs.get(relative, "")))
    return sorted(entries, key=lambda entry: (entry.last_used, entry.folder))


@contextlib.contextmanager
def note_run(out: Path, folder: Path) -> Iterator[None]:
    """Write into a run's folder which cached folders below `out` it used.

    A run that ends early may be resumed, and the results of the one before it are still there: its folders are added to theirs.
    """
    finished, path = False, folder / USED_FILE
    with files.collect_locked_folders() as locked:
        try:
            yield
            finished = True
        finally:
            used = {used.relative_to(out).as_posix() for used in locked - {folder} if used.is_relative_to(out)}
            before = set[str]() if finished or not path.exists() else set(files.read_json(path))
            files.write_json(path, sorted(used | before))


def _read_runs(out: Path) -> Mapping[str, str]:
    """Return for each cached folder, relative to `out`, a run that used it."""
    return {
        used: path.parent.relative_to(out).as_posix()
        for path in sorted([*out.glob(f"*/{USED_FILE}"), *out.glob(f"*/*/{USED_FILE}")])
        for used in files.read_json(path)
    }


def list_runs_without_note(out: Path) -> list[str]:
    """Return the runs with a report, as "recipe/target", whose version did not note what they used."""
    folders = (path.parent for path in out.glob("*/*/report.json") if path.parent.parent.name not in CACHE_FOLDERS)
    return sorted(
        folder.relative_to(out).as_posix()
        for folder in folders
        if any(folder.glob("*.lock.json")) and not (folder / USED_FILE).exists()
    )


def choose(entries: Sequence[CacheEntry], keep_bytes: int, *, include_runs: bool) -> list[CacheEntry]:
    """Return what to remove so that at most `keep_bytes` stay: the longest unused first, never what a run needs.

    Args:
        entries: as `list_entries` returns them.
        keep_bytes: of all entries together.
        include_runs: take what runs need, too.
    """
    chosen, left = list[CacheEntry](), sum(entry.size_bytes for entry in entries)
    for entry in entries:
        if left > keep_bytes and (include_runs or not entry.kept_for):
            chosen.append(entry)
            left -= entry.size_bytes
    return chosen


def remove(entry: CacheEntry) -> bool:
    """Remove what a cached folder holds; return False, and remove nothing, where a process is using it.

    Raises:
        ToolchainError: the disk or the permissions do not allow it.
    """
    try:
        with files.lock_folder(entry.folder, wait=False):
            # first the record that says the folder is complete: what a kill leaves is then made anew
            for path in sorted(entry.folder.iterdir(), key=lambda path: (path.suffix != ".json", path.name)):
                if path.name != files.LOCK_FILE:
                    shutil.rmtree(path) if path.is_dir() else path.unlink()
    except files.FolderInUseError:
        return False
    except OSError as reason:
        raise files.disk_error(entry.folder, reason) from reason
    return True
