"""Find the sources of the C++ runner, in a clone or in the wheel, and pack them for a bundle."""

import hashlib
import tarfile
from pathlib import Path

from toolchain.core import files
from toolchain.core.errors import ToolchainError
from toolchain.core.registry import PACKAGE_FOLDER
from toolchain.edge import archive

ARCHIVE_NAME = "runner.tar"
ARCHIVE_FOLDER = "runner"


def find_sources() -> Path:
    """Return the folder with the C++ runner's sources.

    Raises:
        ToolchainError: they are neither in the package nor beside it.
    """
    for folder in (PACKAGE_FOLDER / "runner_sources", PACKAGE_FOLDER.parent / ARCHIVE_FOLDER):
        if (folder / "CMakeLists.txt").is_file():
            return folder
    raise ToolchainError("the sources of the C++ runner are missing from this installation; reinstall the toolchain")


def hash_sources() -> str:
    """Return the SHA-256 over the names and contents of the sources."""
    digest = hashlib.sha256()
    for name, file in _list_sources():
        digest.update(f"{name}\0{files.sha256_file(file)}\n".encode())
    return digest.hexdigest()


def pack(path: Path) -> Path:
    """Write a tar of the sources with fixed order, owner, mode and time, and return its path."""
    with files.open_atomic(path) as out, tarfile.open(fileobj=out, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        for name, file in _list_sources():
            with file.open("rb") as body:
                tar.addfile(archive.make_member(name, file.stat().st_size), body)
    return path


def _list_sources() -> list[tuple[str, Path]]:
    """Return the name in the archive and the path of every source file, in a fixed order."""
    folder = find_sources()
    sources = [folder / "CMakeLists.txt", *sorted((folder / "src").iterdir())]
    return [(f"{ARCHIVE_FOLDER}/{file.relative_to(folder)}", file) for file in sources]
