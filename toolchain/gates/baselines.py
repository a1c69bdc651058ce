"""The accepted reference of a target and recipe: which archive it is, by hash, and where it lies.

What is kept in the repository is a small JSON with the manifest; the archive itself may lie beside it, in a shared
folder or behind an http address. Whatever comes from there is compared with the hash before it is opened.
"""

import hashlib
import http.client
import shutil
import tempfile
import urllib.request
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from toolchain.config.target import Target
from toolchain.core import files, progress
from toolchain.core.errors import ToolchainError
from toolchain.edge import archive as archives
from toolchain.export.runtime import load_runtime
from toolchain.measure import machine

SCHEMA = 1
REMOTE_SCHEMES = {"http", "https"}
TIMEOUT_SECONDS = 60


@dataclass(frozen=True, kw_only=True)
class Baseline:
    """What `toolchain accept` wrote."""

    __pydantic_config__ = {"extra": "forbid"}
    schema: int
    recipe: str
    target: str
    isa: str  # class of machine that the target is for
    sha256: str  # of the archive
    size_bytes: int  # of the archive
    uri: str  # of the archive: relative to this file, absolute, or http
    accepted_at: str
    accepted_on: Mapping[str, Any]  # machine and runtime version
    manifest: Mapping[str, Any]


def record_path(target: str, recipe: str) -> Path:
    """Where the reference of a recipe on a target is kept: in the user's own repository."""
    return Path("targets") / "baselines" / target / f"{recipe}.json"


def accept(archive: Path, target: Target, recipe: str, uri: str) -> tuple[Path, Baseline]:
    """Records a bundle's archive as the reference from now on.

    Args:
        archive: `bundle.tar` of a finished run.
        uri: folder that the archive is copied to, or the http address of a folder that it will be uploaded to; empty:
            beside the record.

    Returns:
        the record's path and the record.

    Raises:
        ToolchainError: the archive is missing or damaged, or is another target's.
    """
    if not archive.is_file():
        raise ToolchainError(
            f"{archive} is not there; run `toolchain export --target {target.name} --recipe {recipe}` first"
        )
    where, digest = record_path(target.name, recipe), files.sha256_file(archive)
    with tempfile.TemporaryDirectory() as scratch:
        manifest = archives.read_verified_manifest(archives.unpack(archive, Path(scratch) / "bundle"))
    if (manifest.get("target"), manifest.get("recipe")) != (target.name, recipe):
        raise ToolchainError(
            f"{archive} is {manifest.get('recipe')!r} for {manifest.get('target')!r}, not {recipe!r} for {target.name!r}"
        )
    name, scheme = f"{recipe}-{digest[:16]}.tar", _scheme(uri)
    if scheme not in {"", *REMOTE_SCHEMES}:
        raise ToolchainError(
            f"--uri {uri!r}: a folder or an http address is wanted; what {scheme} stores, serve by http"
        )
    if scheme in REMOTE_SCHEMES:
        uri = f"{uri.rstrip('/')}/{name}"
        progress.log(f"upload {archive} to {uri}")
    else:
        kept = (Path(uri) if uri else where.parent) / name
        with files.open_atomic(kept) as out, archive.open("rb") as source:
            shutil.copyfileobj(source, out)
        uri = str(kept.resolve()) if uri else name
    runtime = load_runtime(target.runtime)
    found_on = {"machine": machine.describe(), "runtime": dict(runtime.fingerprint())}
    baseline = Baseline(
        schema=SCHEMA, recipe=recipe, target=target.name, isa=target.isa, sha256=digest,
        size_bytes=archive.stat().st_size, uri=uri, accepted_on=found_on, manifest=manifest,
        accepted_at=files.utc_now(),
    )  # fmt: skip
    files.write_json(where, baseline)
    return where, baseline


def read_record(target: Target, recipe: str) -> tuple[Path, Baseline]:
    """The accepted reference.

    Raises:
        ToolchainError: there is none, or it is damaged, of another version, target or class of machine.
    """
    path = record_path(target.name, recipe)
    if not path.is_file():
        raise ToolchainError(
            f"there is no accepted reference for {recipe} on {target.name} ({path}); record the present bundle with "
            f"`toolchain accept --target {target.name} --recipe {recipe}` and commit that file, or name one with --reference"
        )
    row = files.read_json(path)
    try:
        found: Baseline = TypeAdapter(Baseline).validate_python(row)
    except ValidationError as reason:
        raise _unreadable(path) from reason
    if found.schema != SCHEMA:
        raise _unreadable(path)
    if (found.target, found.recipe) != (target.name, recipe):
        raise ToolchainError(
            f"{path} is the reference of {found.recipe} on {found.target}, not of {recipe} on {target.name}"
        )
    if found.isa != target.isa:
        raise ToolchainError(
            f"{path} was accepted for {found.isa} machines, {target.name} is {target.isa} now; record it anew: toolchain accept"
        )
    return path, found


def _unreadable(path: Path) -> ToolchainError:
    return ToolchainError(
        f"{path} is not a reference that this version reads (schema {SCHEMA}); record it anew: toolchain accept"
    )


def fetch_archive(record: Path, baseline: Baseline, cache: Path) -> Path:
    """The reference's archive, its hash checked; what comes over the network is kept in `cache`.

    Raises:
        ToolchainError: it is not where the record says, or is not what was accepted.
    """
    if _scheme(baseline.uri) in REMOTE_SCHEMES:
        archive = cache / f"{baseline.sha256}.tar"
        if not archive.exists() or files.sha256_file(archive) != baseline.sha256:
            _download(record, baseline, archive)
    else:
        archive = record.parent / baseline.uri  # an absolute path stays one
        if not archive.is_file():
            raise ToolchainError(
                f"the reference's archive is not at {archive}; bring it there, or record another: toolchain accept"
            )
    if (given := files.sha256_file(archive)) != baseline.sha256:
        raise _another(str(archive), given, record, baseline)
    return archive


def _another(where: str, given: str, record: Path, baseline: Baseline) -> ToolchainError:
    return ToolchainError(
        f"{where} is not the archive that was accepted: its SHA-256 is {given[:16]}..., {record} wants "
        f"{baseline.sha256[:16]}...; nothing of it was opened"
    )


def _scheme(uri: str) -> str:
    try:
        return urllib.parse.urlparse(uri).scheme
    except ValueError as reason:
        raise ToolchainError(f"{uri!r} is neither a folder nor an address: {reason}") from reason


def _download(record: Path, baseline: Baseline, archive: Path) -> None:
    progress.log(f"fetching the reference from {baseline.uri}")
    with files.open_atomic(archive) as out:
        try:  # in here, so that a broken network is not taken for a full disk
            with urllib.request.urlopen(baseline.uri, timeout=TIMEOUT_SECONDS) as source:  # noqa: S310  http only
                body = source.read(baseline.size_bytes + 1)
        except (OSError, ValueError, http.client.HTTPException) as reason:
            raise ToolchainError(f"cannot fetch the reference from {baseline.uri}: {reason}") from reason
        if (given := hashlib.sha256(body).hexdigest()) != baseline.sha256:
            raise _another(baseline.uri, given, record, baseline)
        out.write(body)
