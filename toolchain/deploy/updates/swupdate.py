"""Write a package for SWUpdate (.swu): a cpio archive (newc with checksums), `sw-description` first, then its signature.

The description holds the SHA-256 of every file, which signed builds of SWUpdate require. With a certificate the signature
is CMS, without one RSA over SHA-256; which of the two a board checks is a build option of its SWUpdate.
"""

import hashlib
import re
from collections.abc import Mapping
from pathlib import Path

from toolchain.core import files
from toolchain.core.errors import ToolchainError
from toolchain.deploy import signing
from toolchain.deploy.signing import Signer
from toolchain.deploy.update_package import ARCHIVE_NAME, INSTALL_SCRIPT, UpdatePackage, pad
from toolchain.edge import archive

DESCRIPTION_FILE = "sw-description"
REGULAR_FILE_MODE = 0o100644
LIBCONFIG_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_-]*")


def build(package: UpdatePackage, out: Path, signer: Signer | None) -> Mapping[str, Path]:
    """Write the package.

    Returns:
        its path by description.

    Raises:
        ToolchainError: the device type is not a name in libconfig, or SWUpdate cannot check this kind of key.
    """
    if not LIBCONFIG_NAME.fullmatch(device := package.placeholders["device"]):
        raise ToolchainError(
            f"--device-type {device!r}: SWUpdate accepts a letter, followed by letters, digits, '-' and '_'"
        )
    install = package.fill_template(INSTALL_SCRIPT)
    description = package.fill_template(DESCRIPTION_FILE, install_digest=hashlib.sha256(install).hexdigest())
    members = {DESCRIPTION_FILE: description}
    if signer:
        members[f"{DESCRIPTION_FILE}.sig"] = (
            signing.sign_cms(description, signer)
            if signer.certificate
            else signing.sign_detached(description, signer.key, {"RSA"})
        )
    path = out / f"{package.name}.swu"
    with files.open_atomic(path) as file:
        file.write(_make_cpio({**members, ARCHIVE_NAME: package.archive, INSTALL_SCRIPT: install}))
    return {"package": path}


def _make_cpio(members: dict[str, bytes]) -> bytes:
    """Return an archive of the members, in their order, in the portable format "070702" of cpio(5)."""
    timestamp = archive.read_timestamp()
    entries = [
        _make_entry(name, body, number, REGULAR_FILE_MODE, timestamp, sum(body) & 0xFFFFFFFF)
        for number, (name, body) in enumerate(members.items(), 1)
    ]
    return pad(b"".join([*entries, _make_entry("TRAILER!!!", b"", 0, 0, 0, 0)]), 512)


def _make_entry(name: str, body: bytes, inode: int, mode: int, timestamp: int, checksum: int) -> bytes:
    fields = inode, mode, 0, 0, 1, timestamp, len(body), 0, 0, 0, 0, len(name) + 1, checksum
    header = "070702" + "".join(f"{field:08X}" for field in fields)
    return pad(header.encode() + name.encode() + b"\0", 4) + pad(body, 4)
