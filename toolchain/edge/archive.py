"""Pack a bundle into a tar archive, and unpack and check one.

Packing is deterministic: the same files give the same bytes. Unpacking does not trust the archive: members must be regular
files directly in `bundle/`, each is written under its own base name, their number and size are limited before anything is
read, and every hash is checked.
"""

import io
import os
import shutil
import tarfile
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from toolchain.core import files
from toolchain.core.errors import ToolchainError
from toolchain.edge import manifest, run

MAX_FILES = 64
MAX_BYTES = 4 << 30
ARCHIVE_FOLDER = "bundle/"
CHECKSUM_FILE = "SHA256SUMS"
MAX_TIMESTAMP = 8**11  # seconds; the tar format holds 11 octal digits


def write_checksums(folder: Path) -> None:
    """Write SHA256SUMS over all files in a bundle's folder."""
    names = sorted(path.name for path in folder.iterdir() if path.name != CHECKSUM_FILE)
    lines = [f"{files.sha256_file(folder / name)}  {name}" for name in names]
    files.write_text(folder / CHECKSUM_FILE, "\n".join(lines) + "\n")


def pack(folder: Path, path: Path) -> Path:
    """Write a tar of a bundle's folder with fixed order, owner, mode and time (SOURCE_DATE_EPOCH, else 0).

    Returns:
        the archive's path.

    Raises:
        ToolchainError: SOURCE_DATE_EPOCH is not a valid time, or the archive cannot be written.
    """
    with files.open_atomic(path) as out, tarfile.open(fileobj=out, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        for file in sorted(folder.iterdir()):
            with file.open("rb") as body:
                tar.addfile(make_member(f"{ARCHIVE_FOLDER}{file.name}", file.stat().st_size), body)
    return path


def make_member(name: str, size: int) -> tarfile.TarInfo:
    """Return the tar header of a file, with fixed owner, mode and time."""
    member = tarfile.TarInfo(name)
    member.size, member.mtime, member.mode = size, read_timestamp(), 0o644
    return member


def read_timestamp() -> int:
    """Return the time that every packed file gets, in seconds since 1970: SOURCE_DATE_EPOCH, else 0.

    Raises:
        ToolchainError: SOURCE_DATE_EPOCH is not a whole number that tar can hold.
    """
    text = os.environ.get("SOURCE_DATE_EPOCH", "0")
    if not text.isdecimal() or int(text) >= MAX_TIMESTAMP:
        raise ToolchainError(
            f"SOURCE_DATE_EPOCH = {text!r} is not a valid time; give a whole number of seconds since 1970 below {MAX_TIMESTAMP}"
        )
    return int(text)


def unpack(archive: Path, folder: Path, body: bytes | None = None) -> Path:
    """Unpack an archive to `folder` and check every file. A folder that exists already is only checked again.

    Args:
        body: the archive's bytes, if they were read and checked already.

    Returns:
        the bundle's folder.

    Raises:
        ToolchainError: it is not a bundle's archive, or a file has changed since the bundle was built.
    """
    if folder.exists():
        read_verified_manifest(folder)
    else:
        folder.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(dir=folder.parent, prefix=f".{folder.name}.", suffix=".tmp"))
        try:
            _extract(archive, temporary, body)
            read_verified_manifest(temporary)
            unlisted = {path.name for path in temporary.iterdir()} - list_checksummed_files(temporary) - {CHECKSUM_FILE}
            if unlisted:
                raise ToolchainError(f"{archive}: SHA256SUMS does not list {', '.join(sorted(unlisted))}; refused")
            temporary.rename(folder)
        except (tarfile.TarError, ValueError, RecursionError, EOFError, OverflowError) as reason:  # broken headers
            raise ToolchainError(f"{archive} is not a bundle's archive: {reason}") from reason
        except ToolchainError as reason:  # name the archive in the message, not the temporary folder
            raise ToolchainError(str(reason).replace(str(temporary), str(archive))) from reason
        except OSError as reason:
            raise files.disk_error(folder, reason) from reason
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
    return folder


def _extract(archive: Path, folder: Path, body: bytes | None) -> None:
    # an archive is not compressed, so its members cannot be larger than itself
    available = min(MAX_BYTES, archive.stat().st_size if body is None else len(body))
    with tarfile.open(archive, "r:", fileobj=None if body is None else io.BytesIO(body)) as tar:
        total, names = 0, set[str]()
        while (member := tar.next()) is not None:
            name = member.name.removeprefix(ARCHIVE_FOLDER)
            total += member.size
            in_folder = member.name.startswith(ARCHIVE_FOLDER) and name not in {"", ".", ".."}
            is_base_name = not set(name) & set("/\\\0")
            # no links, no devices, no extended headers, which could give another name or size
            is_regular = member.type in {tarfile.REGTYPE, tarfile.AREGTYPE} and not member.pax_headers
            if not (is_regular and in_folder and is_base_name) or name in names:
                raise ToolchainError(f"{archive} is not a bundle's archive: {member.name!r} does not belong in one")
            if len(names) >= MAX_FILES or member.size < 0 or total > MAX_BYTES:
                raise ToolchainError(
                    f"{archive} is larger than any bundle (at most {MAX_FILES} files and {MAX_BYTES >> 30} GiB); refused"
                )
            if total > available:
                raise ToolchainError(f"{archive} is truncated: {member.name} is incomplete; download it again")
            names.add(name)
            source = tar.extractfile(member)
            assert source is not None
            with source, (folder / name).open("xb") as out:
                shutil.copyfileobj(source, out)


def read_verified_manifest(folder: Path) -> Mapping[str, Any]:
    """Check every file of a bundle against its hash, and return its manifest.

    Raises:
        ToolchainError: a file is missing, was changed or is not listed in SHA256SUMS; or the manifest has another schema.
    """
    try:
        run.check_files(folder)
    except run.Refused as reason:
        raise ToolchainError(f"{folder}: {reason}") from reason
    content: Mapping[str, Any] = files.read_json(folder / "manifest.json")
    manifest.check_schema(content, folder)
    return content


def list_checksummed_files(folder: Path) -> set[str]:
    """Return the names of the files that a bundle's SHA256SUMS lists, all directly in its folder."""
    lines = (folder / CHECKSUM_FILE).read_text().splitlines()
    return {name for name in (line.partition("  ")[2] for line in lines) if name == Path(name).name}
