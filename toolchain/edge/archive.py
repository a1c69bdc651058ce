"""A bundle's archive on its way out and in.

Out: the same files give the same bytes. In: the archive may come from anywhere, so nothing in it decides where something
is written. Members are regular files directly in `bundle/`, each is copied by its own plain name, number and size are
capped before a byte is read, and every hash is checked.
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
from toolchain.edge import manifest as manifests
from toolchain.edge import run

MAX_FILES = 64
MAX_BYTES = 4 << 30
ARCHIVE_FOLDER = "bundle/"
CHECKSUM_FILE = "SHA256SUMS"
MAX_TIMESTAMP = 8**11  # that the tar format can hold


def write_checksums(folder: Path) -> None:
    """Writes SHA256SUMS over all that lies in a bundle's folder."""
    names = sorted(path.name for path in folder.iterdir() if path.name != CHECKSUM_FILE)
    lines = [f"{files.sha256_file(folder / name)}  {name}" for name in names]
    files.write_text(folder / CHECKSUM_FILE, "\n".join(lines) + "\n")


def pack(folder: Path, path: Path) -> Path:
    """A tar with fixed order, owner, mode and time (SOURCE_DATE_EPOCH, else 0).

    Raises:
        ToolchainError: SOURCE_DATE_EPOCH is no time; or the archive cannot be written.
    """
    with files.open_atomic(path) as out, tarfile.open(fileobj=out, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        for file in sorted(folder.iterdir()):
            with file.open("rb") as body:
                tar.addfile(make_member(f"{ARCHIVE_FOLDER}{file.name}", file.stat().st_size), body)
    return path


def make_member(name: str, size: int) -> tarfile.TarInfo:
    """A file of an archive that leaves the house: owner, mode and time are always the same."""
    found = tarfile.TarInfo(name)
    found.size, found.mtime, found.mode = size, read_timestamp(), 0o644
    return found


def read_timestamp() -> int:
    """Of every file that leaves the house, in seconds since 1970: SOURCE_DATE_EPOCH, else 0.

    Raises:
        ToolchainError: it is no time.
    """
    text = os.environ.get("SOURCE_DATE_EPOCH", "0")
    if not text.isdecimal() or int(text) >= MAX_TIMESTAMP:
        raise ToolchainError(f"SOURCE_DATE_EPOCH = {text!r}: seconds since 1970 are wanted, a whole number")
    return int(text)


def unpack(archive: Path, folder: Path, body: bytes | None = None) -> Path:
    """Unpacks an archive to `folder`, checked; one that stands there already is checked again.

    Args:
        body: its bytes, where they were read and checked already.

    Returns:
        the bundle's folder.

    Raises:
        ToolchainError: it is no bundle, or not as it was when it was built.
    """
    if folder.exists():
        read_verified_manifest(folder)
    else:
        folder.parent.mkdir(parents=True, exist_ok=True)
        making = Path(tempfile.mkdtemp(dir=folder.parent, prefix=f".{folder.name}.", suffix=".tmp"))
        try:
            _unpack(archive, making, body)
            read_verified_manifest(making)
            if more := {path.name for path in making.iterdir()} - list_checksummed_files(making) - {CHECKSUM_FILE}:
                raise ToolchainError(f"{archive}: SHA256SUMS does not vouch for {', '.join(sorted(more))}; refused")
            making.rename(folder)
        except (tarfile.TarError, ValueError, RecursionError, EOFError, OverflowError) as reason:  # of broken headers
            raise ToolchainError(f"{archive} is not a bundle's archive: {reason}") from reason
        except ToolchainError as reason:  # what is wrong is wrong with the archive, not with where it was unpacked
            raise ToolchainError(str(reason).replace(str(making), str(archive))) from reason
        except OSError as reason:
            raise files.disk_error(folder, reason) from reason
        finally:
            shutil.rmtree(making, ignore_errors=True)
    return folder


def _unpack(archive: Path, folder: Path, body: bytes | None) -> None:
    most = min(MAX_BYTES, archive.stat().st_size if body is None else len(body))  # nothing in it is compressed
    with tarfile.open(archive, "r:", fileobj=None if body is None else io.BytesIO(body)) as tar:
        total, seen = 0, set[str]()
        while (one := tar.next()) is not None:
            name = one.name.removeprefix(ARCHIVE_FOLDER)
            total += one.size
            plain = one.name.startswith(ARCHIVE_FOLDER) and name not in {"", ".", ".."} and not set(name) & set("/\\\0")
            # neither links nor devices, nor what tells sizes and names in another header
            bare = one.type in {tarfile.REGTYPE, tarfile.AREGTYPE} and not one.pax_headers
            if not bare or not plain or name in seen:
                raise ToolchainError(f"{archive} is not a bundle's archive: {one.name!r} does not belong in one")
            if len(seen) >= MAX_FILES or one.size < 0 or total > MAX_BYTES:
                raise ToolchainError(f"{archive} is larger than any bundle; refused")
            if total > most:
                raise ToolchainError(f"{archive} is cut short: {one.name} is not whole; fetch it again")
            seen.add(name)
            source = tar.extractfile(one)
            assert source is not None
            with source, (folder / name).open("xb") as out:
                shutil.copyfileobj(source, out)


def read_verified_manifest(folder: Path) -> Mapping[str, Any]:
    """The manifest of a bundle whose every file is as it was when it was built.

    Raises:
        ToolchainError: a file is missing, was changed or is not vouched for; or the manifest is of another version.
    """
    try:
        run.check_files(folder)
    except run.Refused as reason:
        raise ToolchainError(f"{folder}: {reason}") from reason
    found: Mapping[str, Any] = files.read_json(folder / "manifest.json")
    manifests.check_schema(found, folder)
    return found


def list_checksummed_files(folder: Path) -> set[str]:
    """Names of the files that a bundle's sums vouch for, all directly in its folder."""
    lines = (folder / CHECKSUM_FILE).read_text().splitlines()
    return {name for name in (line.partition("  ")[2] for line in lines) if name == Path(name).name}
