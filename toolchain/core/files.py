"""Files on disk: content hashes, atomic writes, JSON, and folders locked for one writer. Nothing here is a pickle."""

import contextlib
import dataclasses
import datetime
import errno
import fcntl
import hashlib
import json
import os
import tempfile
from collections.abc import Iterator, Mapping
from contextvars import ContextVar
from pathlib import Path
from typing import IO, Any

from toolchain.core import progress
from toolchain.core.errors import ToolchainError
from toolchain.core.types import ADDED_LATER, Artefact

LOCK_FILE = ".lock"
_locked: ContextVar[set[Path] | None] = ContextVar("locked", default=None)


class FolderInUseError(ToolchainError):
    """Another process holds the lock of a folder."""


def utc_now() -> str:
    """Return the current time in UTC, to the second, in ISO 8601."""
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")


def sha256_file(path: Path) -> str:
    """Return the hex digest of a file's bytes.

    Raises:
        ToolchainError: the file cannot be read.
    """
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as reason:
        raise ToolchainError(f"cannot read {path}: {reason.strerror}") from reason


def to_jsonable(value: Any, *, compared: bool = False) -> Any:
    """Return a value in the types of JSON: dataclasses as objects, paths as strings, tuples as lists.

    Args:
        compared: leave out dataclass fields that do not count in comparisons (`compare=False`), and fields
            marked as `ADDED_LATER` that have their default.
    """
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = [f for f in dataclasses.fields(value) if not compared or (f.compare and not _is_left_out(f, value))]
        return {f.name: to_jsonable(getattr(value, f.name), compared=compared) for f in fields}
    if isinstance(value, Mapping):
        return {str(k): to_jsonable(v, compared=compared) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [to_jsonable(v, compared=compared) for v in value]
    return str(value) if isinstance(value, Path) else value


def _is_left_out(field: dataclasses.Field[Any], value: Any) -> bool:
    """Return whether a field was added later and has its default, so that keys made before it stay as they were."""
    return ADDED_LATER.items() <= field.metadata.items() and getattr(value, field.name) == field.default


def digest(*parts: Any) -> str:
    """Return a cache key over JSON-like values and dataclasses, 16 hex digits.

    Dataclass fields with `compare=False` are left out: they do not affect results.
    """
    text = json.dumps([to_jsonable(part, compared=True) for part in parts], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def make_artefact(*files: Path) -> Artefact:
    """Return the artefact of a model's files; its hash covers all of them, in order."""
    total = hashlib.sha256("".join(sha256_file(f) for f in files).encode()).hexdigest()
    size = sum(f.stat().st_size for f in files)
    return Artefact(
        path=files[0], files=files, sha256=total if len(files) > 1 else sha256_file(files[0]), size_bytes=size
    )


@contextlib.contextmanager
def open_atomic(path: Path) -> Iterator[IO[bytes]]:
    """Open a temporary file, which replaces `path` when everything has been written and synced.

    Raises:
        ToolchainError: the disk is full, or there is no permission; an existing file at `path` is unchanged.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp")
    temporary = Path(name)
    try:
        with os.fdopen(descriptor, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        temporary.chmod(0o644)
        temporary.replace(path)
    except OSError as reason:
        raise disk_error(path, reason) from reason
    finally:
        temporary.unlink(missing_ok=True)


def disk_error(path: Path, reason: OSError) -> ToolchainError:
    """Return the error for a failed write, with advice."""
    advice = "free some disk space and run the same command again; finished stages are kept"
    if reason.errno not in {errno.ENOSPC, errno.EDQUOT, None}:  # None: NumPy reports a short write without an errno
        advice = "check the folder's permissions, or choose another with OUT="
    return ToolchainError(f"cannot write {path}: {reason.strerror or reason}; {advice}")


def write_text(path: Path, text: str) -> None:
    """Write a text file atomically."""
    with open_atomic(path) as file:
        file.write(text.encode())


def write_json(path: Path, value: Any) -> None:
    """Write indented JSON with sorted keys atomically."""
    write_text(path, json.dumps(to_jsonable(value), indent=1, sort_keys=True) + "\n")


def read_json(path: Path) -> Any:
    """Read a JSON file.

    Raises:
        ToolchainError: it does not exist or is not valid JSON.
    """
    try:
        return json.loads(path.read_text())
    except OSError as reason:
        raise ToolchainError(f"cannot read {path}: {reason.strerror}") from reason
    except (ValueError, RecursionError) as reason:
        raise ToolchainError(f"{path} is not valid JSON: {reason}; remove it and run again") from reason


@contextlib.contextmanager
def lock_folder(folder: Path, *, wait: bool) -> Iterator[None]:
    """Lock `folder` for this process. The lock ends with the process, so a killed run never blocks the next.

    Args:
        wait: wait for another run that holds the lock, instead of raising.

    Raises:
        FolderInUseError: another run holds the lock and `wait` is false.
        ToolchainError: the folder cannot be made.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        handle = (folder / LOCK_FILE).open("a+")
    except OSError as reason:
        raise disk_error(folder, reason) from reason
    with handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as reason:
            if not wait:
                raise FolderInUseError(
                    f"another run is writing to {folder}; wait for it to end, or choose another folder with OUT="
                ) from reason
            progress.log(f"{folder.parent.name}: another run is computing this; waiting for its result")
            fcntl.flock(handle, fcntl.LOCK_EX)
        os.utime(handle.fileno())  # when it was last used
        if (locked := _locked.get()) is not None:
            locked.add(folder)
        yield


@contextlib.contextmanager
def collect_locked_folders() -> Iterator[set[Path]]:
    """Collect the folders that are locked with `lock_folder` while the block runs: what a run uses of the caches."""
    locked = set[Path]()
    token = _locked.set(locked)
    try:
        yield locked
    finally:
        _locked.reset(token)
