"""RAUC's bundle: a folder with `manifest.raucm`, which RAUC's own tool turns into a signed .raucb.

Squashfs, verity and CMS together are RAUC's business, so nothing here imitates them: where `rauc` is installed and a
certificate is given, it is called; else the folder is what is handed on, with the command to be run.
"""

import os
import shlex
import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path

from toolchain.core import files as records
from toolchain.core import progress
from toolchain.core.errors import ToolchainError
from toolchain.deploy import signing
from toolchain.deploy.signing import Signer
from toolchain.deploy.update_package import ARCHIVE_NAME, INSTALL_SCRIPT, UpdatePackage

MANIFEST_FILE = "manifest.raucm"


def build(cargo: UpdatePackage, out: Path, signer: Signer | None) -> Mapping[str, Path]:
    """Writes the folder, and the bundle where that can be made here.

    Raises:
        ToolchainError: a key without a certificate, or RAUC refuses key, certificate or manifest.
    """
    if signer and signer.certificate is None:
        raise ToolchainError("RAUC checks certificates: --certificate with the key's own")
    folder, package = out / f"{cargo.name}.rauc", out / f"{cargo.name}.raucb"
    shutil.rmtree(folder, ignore_errors=True)
    manifest = cargo.fill_template(MANIFEST_FILE)
    files = {MANIFEST_FILE: manifest, ARCHIVE_NAME: cargo.archive}
    if INSTALL_SCRIPT.encode() in manifest:
        files[INSTALL_SCRIPT] = cargo.fill_template(INSTALL_SCRIPT)
    for name, body in files.items():
        with records.open_atomic(folder / name) as file:
            file.write(body)
    if INSTALL_SCRIPT in files:
        (folder / INSTALL_SCRIPT).chmod(0o755)
    if signer is None:
        words = shlex.join(_command(folder, package, "certificate.pem", "private.pem"))
        progress.log(f"rauc: a bundle is always signed, with --key and --certificate, or by: {words}")
        return {"input of `rauc bundle`": folder}
    certificate, key = str(signer.certificate), str(signer.key)
    if shutil.which("rauc") is None:
        words = shlex.join(_command(folder, package, certificate, key))
        progress.log(f"rauc is not installed here; where it is: {words}")
        return {"input of `rauc bundle`": folder}
    made = package.with_name(f".{package.name}")  # what stood there stays until this one is whole
    made.unlink(missing_ok=True)
    ended = subprocess.run(
        _command(folder, made, certificate, key), capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL,
        env={**os.environ, "RAUC_KEY_PASSPHRASE": os.environ.get(signing.PASSWORD_VARIABLE, "")},
    )  # fmt: skip
    if ended.returncode:
        made.unlink(missing_ok=True)
        raise ToolchainError(f"rauc refuses {folder}: {(ended.stderr or ended.stdout).strip()}")
    made.replace(package)
    return {"package": package, "made of": folder}


def _command(folder: Path, package: Path, certificate: str, key: str) -> list[str]:
    return ["rauc", "bundle", f"--cert={certificate}", f"--key={key}", str(folder), str(package)]
