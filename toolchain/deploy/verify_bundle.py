"""Is a bundle what its makers released? Signature first, then every hash, then the manifest; no parser sees the model."""

import tempfile
from dataclasses import dataclass
from pathlib import Path

from toolchain.core.errors import ToolchainError
from toolchain.deploy import signing
from toolchain.edge import archive as archives
from toolchain.edge import manifest as manifests
from toolchain.edge.manifest import Manifest


@dataclass(frozen=True, kw_only=True)
class VerifiedBundle:
    """A bundle that is whole."""

    manifest: Manifest
    file_count: int
    key_fingerprint: str  # kind and fingerprint of the key; "" where no signature was asked for

    @property
    def summary(self) -> str:
        """What was found, in one line."""
        by = (
            f"signed with {self.key_fingerprint}"
            if self.key_fingerprint
            else "nobody asked whether it is signed (--key)"
        )
        made = self.manifest
        return f"{made.recipe} for {made.target}, release {made.release}: {self.file_count} files intact, {by}"


def check(bundle: Path, key: Path | None, least_release: int) -> VerifiedBundle:
    """Checks a bundle's archive, or without a key its folder.

    Raises:
        ToolchainError: not signed by that key, altered, truncated, of another schema or older than `least_release`.
    """
    if bundle.is_dir():
        if key:
            raise ToolchainError(f"{bundle} is a folder; a signature is over the archive, give {bundle.name}.tar")
        return _found(bundle, bundle, "", least_release)
    body = _read(bundle)  # once: what is checked is what is unpacked
    signer = signing.verify(body, signing.signature_path(bundle), key) if key else ""
    with tempfile.TemporaryDirectory() as scratch:
        return _found(archives.unpack(bundle, Path(scratch) / "bundle", body), bundle, signer, least_release)


def _found(folder: Path, named: Path, signer: str, least_release: int) -> VerifiedBundle:
    """Checks a bundle's folder, in messages called as the user did."""
    manifest = manifests.parse(archives.read_verified_manifest(folder), named)
    if manifest.release < least_release:
        raise ToolchainError(
            f"release {manifest.release} of {manifest.recipe} for {manifest.target} is older than {least_release}, which is "
            f"the least that is wanted; build it with --release {least_release} or more"
        )
    return VerifiedBundle(
        manifest=manifest, file_count=len(archives.list_checksummed_files(folder)), key_fingerprint=signer
    )


def read_archive(archive: Path) -> tuple[bytes, Manifest]:
    """An archive's bytes and its manifest, every file in it checked.

    Raises:
        ToolchainError: it is a folder, or damaged.
    """
    if archive.is_dir():
        raise ToolchainError(f"{archive} is a folder; the archive is what leaves the house: {archive}.tar")
    body = _read(archive)
    with tempfile.TemporaryDirectory() as scratch:
        return body, _found(archives.unpack(archive, Path(scratch) / "bundle", body), archive, "", 0).manifest


def sign(archive: Path, key: Path) -> Path:
    """Signs an archive that is whole.

    Raises:
        ToolchainError: it is a folder, or damaged; or the key is none that is accepted.
    """
    return signing.sign(archive, read_archive(archive)[0], key)


def _read(archive: Path) -> bytes:
    try:
        with archive.open("rb") as file:
            body = file.read(archives.MAX_BYTES + 1)
    except OSError as reason:
        raise ToolchainError(f"cannot read {archive}: {reason.strerror}; a bundle's .tar is wanted") from reason
    if len(body) > archives.MAX_BYTES:
        raise ToolchainError(f"{archive} is larger than any bundle; refused")
    return body
