"""Check that a bundle is what was released: first the signature, then every hash, then the manifest.

The model itself is never parsed.
"""

import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from toolchain.core.errors import ToolchainError
from toolchain.deploy import signing
from toolchain.edge import archive, manifest
from toolchain.edge.manifest import Manifest


@dataclass(frozen=True, kw_only=True)
class VerifiedBundle:
    """A bundle whose files are all intact."""

    manifest: Manifest
    file_count: int
    key_fingerprint: str  # kind and fingerprint of the key; "": the signature was not checked

    @property
    def summary(self) -> str:
        """Return the result in one line."""
        signature = (
            f"signed with {self.key_fingerprint}" if self.key_fingerprint else "signature not checked (give --key)"
        )
        content = self.manifest
        intact = f"{self.file_count} files intact" + ("" if content.accepted else ", not accepted (missed a budget)")
        return f"{content.recipe} for {content.target}, release {content.release}: {intact}, {signature}"


def check(bundle: Path, key: Path | None, least_release: int) -> VerifiedBundle:
    """Check a bundle's archive or, without a key, its folder.

    Args:
        bundle: archive or folder.
        key: PEM of the public key; None leaves the signature unchecked.
        least_release: oldest release that is accepted.

    Raises:
        ToolchainError: not signed by that key, altered, truncated, of another schema or older than `least_release`.
    """
    if bundle.is_dir():
        if key:
            raise ToolchainError(f"{bundle} is a folder, but a signature covers the archive; give {bundle.name}.tar")
        return _check_folder(bundle, bundle, "", least_release)
    body = _read(bundle)  # read once, so that the bytes that are checked are those that are unpacked
    fingerprint = signing.verify(body, signing.signature_path(bundle), key) if key else ""
    with tempfile.TemporaryDirectory() as scratch:
        folder = archive.unpack(bundle, Path(scratch) / "bundle", body)
        return _check_folder(folder, bundle, fingerprint, least_release)


def _check_folder(folder: Path, bundle: Path, fingerprint: str, least_release: int) -> VerifiedBundle:
    """Check a bundle's folder; messages name `bundle`, the path that the user gave."""
    content = manifest.parse(archive.read_verified_manifest(folder), bundle)
    if content.release < least_release:
        raise ToolchainError(
            f"{content.recipe} for {content.target} is release {content.release}, older than the required release "
            f"{least_release}; build it with --release {least_release} or higher"
        )
    return VerifiedBundle(
        manifest=content, file_count=len(archive.list_checksummed_files(folder)), key_fingerprint=fingerprint
    )


def read_archive(bundle: Path) -> tuple[bytes, Manifest]:
    """Read an archive that is to ship, and check every file in it.

    Returns:
        its bytes and its manifest.

    Raises:
        ToolchainError: it is a folder, damaged, or a model that missed a budget.
    """
    refuse_folder(bundle)
    body = _read(bundle)
    with tempfile.TemporaryDirectory() as scratch:
        content = _check_folder(archive.unpack(bundle, Path(scratch) / "bundle", body), bundle, "", 0).manifest
    refuse_not_accepted(vars(content), bundle)
    return body, content


def refuse_folder(bundle: Path) -> None:
    """Refuse a folder where an archive that is to ship is expected.

    Raises:
        ToolchainError: it is a folder; of a bundle that missed a budget, which has no archive, the message says so.
    """
    if not bundle.is_dir():
        return
    if (bundle / archive.CHECKSUM_FILE).is_file():
        refuse_not_accepted(archive.read_verified_manifest(bundle), bundle)
    raise ToolchainError(f"{bundle} is a folder; give the archive, {bundle}.tar")


def refuse_not_accepted(content: Mapping[str, Any], bundle: Path) -> None:
    """Refuse a bundle that was written for inspection only; `content` is its manifest.

    Raises:
        ToolchainError: its manifest says that it missed a budget.
    """
    if not content.get("accepted", True):
        raise ToolchainError(
            f"{bundle} missed a budget and was not accepted, so it is not signed, packaged, gated or made a baseline; loosen the "
            "budget (the end of the export names the nearest one) and export again"
        )


def sign(bundle: Path, key: Path) -> Path:
    """Check an archive and sign it.

    Returns:
        the signature's path.

    Raises:
        ToolchainError: the archive is a folder or damaged, or the key is not accepted.
    """
    return signing.sign(bundle, read_archive(bundle)[0], key)


def _read(bundle: Path) -> bytes:
    try:
        with bundle.open("rb") as file:
            body = file.read(archive.MAX_BYTES + 1)
    except OSError as reason:
        raise ToolchainError(f"cannot read {bundle}: {reason.strerror}; give a bundle's .tar") from reason
    if len(body) > archive.MAX_BYTES:
        raise ToolchainError(f"{bundle} is larger than any bundle (at most {archive.MAX_BYTES >> 30} GiB); refused")
    return body
