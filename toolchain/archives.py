"""A bundle's archive on its way in: only what a bundle consists of is unpacked, and every hash is checked.

The archive may come from anywhere, so nothing in it decides where something is written: members are regular files
directly in `bundle/`, each is copied by its own plain name, and number and size are capped before a byte is read.
"""

import shutil
import tarfile
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from toolchain import records, runner
from toolchain.errors import ToolchainError

MOST_FILES = 64
MOST_BYTES = 4 << 30
INSIDE = "bundle/"
SCHEMA = 1  # of manifests, as this version writes and reads them


def unpacked(archive: Path, folder: Path) -> Path:
    """Unpacks an archive to `folder`, checked; one that stands there already is checked again.

    Returns:
        the bundle's folder.

    Raises:
        ToolchainError: it is no bundle, or not as it was when it was built.
    """
    if folder.exists():
        manifest(folder)
    else:
        folder.parent.mkdir(parents=True, exist_ok=True)
        making = Path(tempfile.mkdtemp(dir=folder.parent, prefix=f".{folder.name}.", suffix=".tmp"))
        try:
            _unpack(archive, making)
            manifest(making)
            making.rename(folder)
        except tarfile.TarError as reason:
            raise ToolchainError(f"{archive} is not a bundle's archive: {reason}") from reason
        except OSError as reason:
            raise records.disk_error(folder, reason) from reason
        finally:
            shutil.rmtree(making, ignore_errors=True)
    return folder


def _unpack(archive: Path, folder: Path) -> None:
    with tarfile.open(archive, "r:") as tar:
        total, seen = 0, set[str]()
        while (member := tar.next()) is not None:
            name = member.name.removeprefix(INSIDE)
            total += member.size
            plain = member.name.startswith(INSIDE) and name not in {"", ".", ".."} and not set(name) & set("/\\\0")
            if not member.isreg() or not plain or name in seen:
                raise ToolchainError(f"{archive} is not a bundle's archive: {member.name!r} does not belong in one")
            if len(seen) >= MOST_FILES or total > MOST_BYTES:
                raise ToolchainError(f"{archive} is larger than any bundle; refused")
            seen.add(name)
            source = tar.extractfile(member)
            assert source is not None
            with source, (folder / name).open("xb") as out:
                shutil.copyfileobj(source, out)


def manifest(folder: Path) -> Mapping[str, Any]:
    """The manifest of a bundle whose every file is as it was when it was built.

    Raises:
        ToolchainError: a file is missing, was changed or is not vouched for; or the manifest is of another version.
    """
    try:
        runner.check_files(folder)
    except runner.Refused as reason:
        raise ToolchainError(f"{folder}: {reason}") from reason
    found: Mapping[str, Any] = records.read_json(folder / "manifest.json")
    if not isinstance(found, dict) or found.get("schema") != SCHEMA:
        given = found.get("schema") if isinstance(found, dict) else None
        raise ToolchainError(f"{folder}: manifest schema {given!r}; this version reads {SCHEMA}")
    return found


def listed(folder: Path) -> set[str]:
    """Names of the files that a bundle's sums vouch for, all directly in its folder."""
    lines = (folder / "SHA256SUMS").read_text().splitlines()
    return {name for name in (line.partition("  ")[2] for line in lines) if name == Path(name).name}
