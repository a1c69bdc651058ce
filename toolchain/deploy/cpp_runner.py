"""The sources of the C++ runner, as they lie in a clone or in the wheel, and as one archive for a bundle."""

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
    """Where they lie.

    Raises:
        ToolchainError: neither in the package nor beside it.
    """
    for place in (PACKAGE_FOLDER / "runner_sources", PACKAGE_FOLDER.parent / ARCHIVE_FOLDER):
        if (place / "CMakeLists.txt").is_file():
            return place
    raise ToolchainError("the C++ runner's sources are missing from this installation; install it again")


def hash_sources() -> str:
    """Over names and contents."""
    found = hashlib.sha256()
    for name, file in _files():
        found.update(f"{name}\0{files.sha256_file(file)}\n".encode())
    return found.hexdigest()


def pack(path: Path) -> Path:
    """A tar of them with fixed order, owner, mode and time."""
    with files.open_atomic(path) as out, tarfile.open(fileobj=out, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        for name, file in _files():
            with file.open("rb") as body:
                tar.addfile(archive.make_member(name, file.stat().st_size), body)
    return path


def _files() -> list[tuple[str, Path]]:
    top = find_sources()
    kept = [top / "CMakeLists.txt", *sorted((top / "src").iterdir())]
    return [(f"{ARCHIVE_FOLDER}/{file.relative_to(top)}", file) for file in kept]
