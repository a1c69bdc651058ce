"""SWUpdate's .swu: a cpio archive (newc with checksums), `sw-description` first and its signature directly after.

Every image has its SHA-256 in the description, which signed builds of SWUpdate insist on. With a certificate the signature
is CMS, without one RSA over SHA-256: which of the two a board checks is settled when its SWUpdate is built.
"""

import hashlib
import re
from collections.abc import Mapping
from pathlib import Path

from toolchain.core import files as records
from toolchain.core.errors import ToolchainError
from toolchain.deploy import signing
from toolchain.deploy.signing import Signer
from toolchain.deploy.update_package import ARCHIVE_NAME, INSTALL_SCRIPT, UpdatePackage, pad
from toolchain.edge import archive

DESCRIPTION_FILE = "sw-description"
REGULAR_FILE_MODE = 0o100644
LIBCONFIG_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_-]*")


def build(cargo: UpdatePackage, out: Path, signer: Signer | None) -> Mapping[str, Path]:
    """Writes the package.

    Raises:
        ToolchainError: the board's type is no name in libconfig; or the key is of another kind.
    """
    if not LIBCONFIG_NAME.fullmatch(device := cargo.placeholders["device"]):
        raise ToolchainError(
            f"--device-type {device!r}: for SWUpdate a letter, then letters, digits, - and _ are wanted"
        )
    install = cargo.fill_template(INSTALL_SCRIPT)
    described = cargo.fill_template(DESCRIPTION_FILE, install_digest=hashlib.sha256(install).hexdigest())
    files = {DESCRIPTION_FILE: described}
    if signer:
        files[f"{DESCRIPTION_FILE}.sig"] = (
            signing.sign_cms(described, signer)
            if signer.certificate
            else signing.sign_detached(described, signer.key, {"RSA"})
        )
    package = out / f"{cargo.name}.swu"
    with records.open_atomic(package) as file:
        file.write(_cpio({**files, ARCHIVE_NAME: cargo.archive, INSTALL_SCRIPT: install}))
    return {"package": package}


def _cpio(files: dict[str, bytes]) -> bytes:
    """Files in their order, in the portable format "070702" of cpio(5)."""
    moment = archive.read_timestamp()
    entries = [
        _entry(name, body, number, REGULAR_FILE_MODE, moment, sum(body) & 0xFFFFFFFF)
        for number, (name, body) in enumerate(files.items(), 1)
    ]
    return pad(b"".join([*entries, _entry("TRAILER!!!", b"", 0, 0, 0, 0)]), 512)


def _entry(name: str, body: bytes, inode: int, mode: int, moment: int, checksum: int) -> bytes:
    fields = inode, mode, 0, 0, 1, moment, len(body), 0, 0, 0, 0, len(name) + 1, checksum
    header = "070702" + "".join(f"{field:08X}" for field in fields)
    return pad(header.encode() + name.encode() + b"\0", 4) + pad(body, 4)
