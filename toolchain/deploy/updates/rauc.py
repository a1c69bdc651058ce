"""Write a RAUC bundle: a folder with `manifest.raucm`, which the `rauc` tool turns into a signed .raucb.

Only `rauc` itself writes the .raucb (squashfs, verity and CMS). Where it is installed and a certificate is given, it is
called here; otherwise the result is the folder, and the command to run on it is logged.
"""

import os
import shlex
import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path

from toolchain.core import files, progress
from toolchain.core.errors import ToolchainError
from toolchain.deploy import signing
from toolchain.deploy.signing import Signer
from toolchain.deploy.update_package import ARCHIVE_NAME, INSTALL_SCRIPT, UpdatePackage

MANIFEST_FILE = "manifest.raucm"


def build(package: UpdatePackage, out: Path, signer: Signer | None) -> Mapping[str, Path]:
    """Write the folder, and the .raucb where `rauc` is installed and a signer is given.

    Returns:
        paths by description.

    Raises:
        ToolchainError: a key is given without a certificate, or RAUC refuses key, certificate or manifest.
    """
    if signer and signer.certificate is None:
        raise ToolchainError("RAUC checks certificates: give --certificate, the X.509 certificate of the key")
    folder, bundle = out / f"{package.name}.rauc", out / f"{package.name}.raucb"
    _write_folder(package, folder)
    if signer is None:
        command = shlex.join(_command(folder, bundle, "certificate.pem", "private.pem"))
        progress.log(f"rauc: a RAUC bundle must be signed; give --key and --certificate, or run: {command}")
        return {"input of `rauc bundle`": folder}
    certificate, key = str(signer.certificate), str(signer.key)
    if shutil.which("rauc") is None:
        command = shlex.join(_command(folder, bundle, certificate, key))
        progress.log(f"rauc is not installed on this machine; run this where it is: {command}")
        return {"input of `rauc bundle`": folder}
    temporary = bundle.with_name(f".{bundle.name}")  # an existing bundle stays until the new one is complete
    temporary.unlink(missing_ok=True)
    ended = subprocess.run(
        _command(folder, temporary, certificate, key), capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL,
        env={**os.environ, "RAUC_KEY_PASSPHRASE": os.environ.get(signing.PASSWORD_VARIABLE, "")},
    )  # fmt: skip
    if ended.returncode:
        temporary.unlink(missing_ok=True)
        raise ToolchainError(f"rauc refuses {folder}: {(ended.stderr or ended.stdout).strip()}")
    temporary.replace(bundle)
    return {"package": bundle, "made of": folder}


def _write_folder(package: UpdatePackage, folder: Path) -> None:
    """Write manifest, archive and, if the manifest names it, the install script."""
    shutil.rmtree(folder, ignore_errors=True)
    manifest = package.fill_template(MANIFEST_FILE)
    bodies = {MANIFEST_FILE: manifest, ARCHIVE_NAME: package.archive}
    if INSTALL_SCRIPT.encode() in manifest:
        bodies[INSTALL_SCRIPT] = package.fill_template(INSTALL_SCRIPT)
    for name, body in bodies.items():
        with files.open_atomic(folder / name) as file:
            file.write(body)
    if INSTALL_SCRIPT in bodies:
        (folder / INSTALL_SCRIPT).chmod(0o755)


def _command(folder: Path, bundle: Path, certificate: str, key: str) -> list[str]:
    return ["rauc", "bundle", f"--cert={certificate}", f"--key={key}", str(folder), str(bundle)]
