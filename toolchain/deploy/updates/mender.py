"""Write a Mender artifact, format 3, with a payload of type "edge-model", and the update module that boards need for it.

Order and contents follow Mender's `artifact-format-v3.md`: version, manifest, its signature, header, data.
"""

import base64
import gzip
import hashlib
import io
import json
import tarfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature

from toolchain.core import files
from toolchain.core.errors import ToolchainError
from toolchain.deploy import signing
from toolchain.deploy.signing import Signer
from toolchain.deploy.update_package import ARCHIVE_NAME, INSTALL_SCRIPT, UpdatePackage
from toolchain.edge import archive

UPDATE_MODULE = "edge-model"
FORMAT_VERSION = {"format": "mender", "version": 3}
P256_BYTES = 32


def build(package: UpdatePackage, out: Path, signer: Signer | None) -> Mapping[str, Path]:
    """Write the artifact, and the update module beside it.

    Returns:
        paths by description.

    Raises:
        ToolchainError: a certificate is given, or Mender cannot check this kind of key.
    """
    if signer and signer.certificate:
        raise ToolchainError(
            f"--certificate {signer.certificate}: Mender checks keys, not certificates; leave --certificate out and put the "
            "public key on the board"
        )
    payload = {ARCHIVE_NAME: package.archive, INSTALL_SCRIPT: package.fill_template(INSTALL_SCRIPT)}
    header = _make_header(package)
    version = _to_json(FORMAT_VERSION)
    hashed = {
        "version": version,
        "header.tar.gz": header,
        **{f"data/0000/{name}": body for name, body in payload.items()},
    }
    manifest = "".join(
        f"{hashlib.sha256(body).hexdigest()}  {name}\n" for name, body in sorted(hashed.items())
    ).encode()
    members = {"version": version, "manifest": manifest}
    if signer:
        members["manifest.sig"] = base64.b64encode(_sign(manifest, signer))
    members |= {"header.tar.gz": header, "data/0000.tar.gz": _make_tar_gz(payload)}
    artifact, module = out / f"{package.name}.mender", out / UPDATE_MODULE
    with files.open_atomic(artifact) as file:
        file.write(_make_tar(members))
    files.write_text(module, package.fill_template(UPDATE_MODULE).decode())
    module.chmod(0o755)
    return {"package": artifact, "update module (install it once on each board)": module}


def _make_header(package: UpdatePackage) -> bytes:
    """Return the header: the artifact's name, the boards it is for, and the type of its only payload."""
    provides = {f"edge-model.{package.placeholders['recipe']}.version": package.placeholders["version"]}
    info = {
        "payloads": [{"type": UPDATE_MODULE}],
        "artifact_provides": {"artifact_name": package.name},
        "artifact_depends": {"device_type": [package.placeholders["device"]]},
    }
    type_info = {"type": UPDATE_MODULE, "artifact_provides": provides, "clears_artifact_provides": list(provides)}
    return _make_tar_gz({"header-info": _to_json(info), "headers/0000/type-info": _to_json(type_info)})


def _sign(manifest: bytes, signer: Signer) -> bytes:
    """Return the signature as Mender reads it: RSA unchanged; for P-256, r and s as 32 bytes each instead of DER."""
    signature = signing.sign_detached(manifest, signer.key, {"RSA", "P-256"})
    if not signature.startswith(b"\x30") or len(signature) > 2 * P256_BYTES + 8:
        return signature
    return b"".join(number.to_bytes(P256_BYTES, "big") for number in decode_dss_signature(signature))


def _to_json(value: Any) -> bytes:
    return json.dumps(value, separators=(",", ":")).encode()


def _make_tar_gz(members: dict[str, bytes]) -> bytes:
    return gzip.compress(_make_tar(members), 9, mtime=0)


def _make_tar(members: dict[str, bytes]) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        for name, body in members.items():
            tar.addfile(archive.make_member(name, len(body)), io.BytesIO(body))
    return out.getvalue()
