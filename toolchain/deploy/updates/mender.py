"""Mender's artifact, format 3, with a payload of type "edge-model", and the update module that boards need for it once.

Order and contents are those of Mender's `artifact-format-v3.md`: version, manifest, its signature, header, data.
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

from toolchain.core import files as records
from toolchain.core.errors import ToolchainError
from toolchain.deploy import signing
from toolchain.deploy.signing import Signer
from toolchain.deploy.update_package import ARCHIVE_NAME, INSTALL_SCRIPT, UpdatePackage
from toolchain.edge import archive

UPDATE_MODULE = "edge-model"
FORMAT_VERSION = {"format": "mender", "version": 3}
P256_BYTES = 32


def build(cargo: UpdatePackage, out: Path, signer: Signer | None) -> Mapping[str, Path]:
    """Writes the artifact, and the module beside it.

    Raises:
        ToolchainError: a certificate is given, or the key is of another kind.
    """
    if signer and signer.certificate:
        raise ToolchainError(
            "Mender checks keys, not certificates: leave --certificate out and put the public key on the board"
        )
    payload = {ARCHIVE_NAME: cargo.archive, INSTALL_SCRIPT: cargo.fill_template(INSTALL_SCRIPT)}
    header = _header(cargo)
    version = _json(FORMAT_VERSION)
    summed = {
        "version": version,
        "header.tar.gz": header,
        **{f"data/0000/{name}": body for name, body in payload.items()},
    }
    manifest = "".join(
        f"{hashlib.sha256(body).hexdigest()}  {name}\n" for name, body in sorted(summed.items())
    ).encode()
    members = {"version": version, "manifest": manifest}
    if signer:
        members["manifest.sig"] = base64.b64encode(_signature(manifest, signer))
    members |= {"header.tar.gz": header, "data/0000.tar.gz": _packed(payload)}
    artifact, module = out / f"{cargo.name}.mender", out / UPDATE_MODULE
    with records.open_atomic(artifact) as file:
        file.write(_tar(members))
    records.write_text(module, cargo.fill_template(UPDATE_MODULE).decode())
    module.chmod(0o755)
    return {"package": artifact, "update module, once a board": module}


def _header(cargo: UpdatePackage) -> bytes:
    """Which boards it is for, what it is called, and of which type its one payload is."""
    provides = {f"edge-model.{cargo.placeholders['recipe']}.version": cargo.placeholders["version"]}
    info = {
        "payloads": [{"type": UPDATE_MODULE}],
        "artifact_provides": {"artifact_name": cargo.name},
        "artifact_depends": {"device_type": [cargo.placeholders["device"]]},
    }
    type_info = {"type": UPDATE_MODULE, "artifact_provides": provides, "clears_artifact_provides": list(provides)}
    return _packed({"header-info": _json(info), "headers/0000/type-info": _json(type_info)})


def _signature(manifest: bytes, signer: Signer) -> bytes:
    """RSA as it is; of a curve, which is P-256 here, both numbers side by side."""
    made = signing.sign_detached(manifest, signer.key, {"RSA", "P-256"})
    if not made.startswith(b"\x30") or len(made) > 2 * P256_BYTES + 8:
        return made
    return b"".join(number.to_bytes(P256_BYTES, "big") for number in decode_dss_signature(made))


def _json(value: Any) -> bytes:
    return json.dumps(value, separators=(",", ":")).encode()


def _packed(files: dict[str, bytes]) -> bytes:
    return gzip.compress(_tar(files), 9, mtime=0)


def _tar(files: dict[str, bytes]) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        for name, body in files.items():
            tar.addfile(archive.make_member(name, len(body)), io.BytesIO(body))
    return out.getvalue()
