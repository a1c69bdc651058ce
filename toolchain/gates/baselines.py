"""Accepted baselines: which archive is the baseline of a recipe on a target, by hash, and where the archive is stored.

The repository holds a small JSON record with the manifest. The archive may lie beside it, in a shared folder or behind an
http address; its hash is checked before it is opened.
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
from toolchain.deploy import verify_bundle
from toolchain.edge.archive import read_verified_manifest, unpack
from toolchain.export.runtime import load_runtime
from toolchain.gates.data_source import DataSource
from toolchain.measure import machine

SCHEMA = 2
READABLE_SCHEMAS = (1, 2)  # 1 has no `data`
REMOTE_SCHEMES = {"http", "https"}
TIMEOUT_SECONDS = 60


@dataclass(frozen=True, kw_only=True)
class Baseline:
    """The record that `toolchain accept` writes."""

    __pydantic_config__ = {"extra": "forbid"}
    schema: int
    recipe: str
    target: str
    isa: str  # the target's instruction set class
    sha256: str  # of the archive
    size_bytes: int  # of the archive
    uri: str  # of the archive: a path relative to this file, an absolute path, or http
    accepted_at: str
    accepted_on: Mapping[str, Any]  # machine and runtime version
    manifest: Mapping[str, Any]
    data: DataSource | None = None  # the labelled images of the run, for the gate to find again


def record_path(target: str, recipe: str) -> Path:
    """Return the path of the record of a recipe on a target, in the user's repository."""
    return Path("targets") / "baselines" / target / f"{recipe}.json"


def accept(
    archive: Path, target: Target, recipe: str, uri: str, data: DataSource | None = None
) -> tuple[Path, Baseline]:
    """Record a bundle's archive as the baseline from now on.

    Args:
        archive: `bundle.tar` of a finished run.
        target: the target that it must have been built for.
        recipe: the recipe's name.
        uri: folder that the archive is copied to, or http address of the folder that the user uploads it to; empty:
            beside the record.
        data: the labelled images that `gate` compares accuracy on; None: it has to be told.

    Returns:
        The record's path and the record.

    Raises:
        ToolchainError: the archive is missing, a folder or damaged, missed a budget, or was built for another target or recipe.
    """
    verify_bundle.refuse_folder(archive)
    if not archive.is_file():
        raise ToolchainError(
            f"{archive} is not there; run `toolchain export --target {target.name} --recipe {recipe}` first"
        )
    record, digest = record_path(target.name, recipe), files.sha256_file(archive)
    with tempfile.TemporaryDirectory() as scratch:
        manifest = read_verified_manifest(unpack(archive, Path(scratch) / "bundle"))
    verify_bundle.refuse_not_accepted(manifest, archive)
    if (manifest.get("target"), manifest.get("recipe")) != (target.name, recipe):
        raise ToolchainError(
            f"{archive} is {manifest.get('recipe')!r} for {manifest.get('target')!r}, not {recipe!r} for {target.name!r}"
        )
    name, scheme = f"{recipe}-{digest[:16]}.tar", _scheme(uri)
    if scheme not in {"", *REMOTE_SCHEMES}:
        raise ToolchainError(f"--uri {uri!r}: give a folder or an http address; {scheme}: is not supported")
    if scheme in REMOTE_SCHEMES:
        uri = f"{uri.rstrip('/')}/{name}"
        progress.log(f"upload {archive} to {uri}")
    else:
        copy = (Path(uri) if uri else record.parent) / name
        with files.open_atomic(copy) as out, archive.open("rb") as source:
            shutil.copyfileobj(source, out)
        uri = str(copy.resolve()) if uri else name
    runtime = load_runtime(target.runtime)
    accepted_on = {"machine": machine.describe(), "runtime": dict(runtime.fingerprint())}
    baseline = Baseline(
        schema=SCHEMA, recipe=recipe, target=target.name, isa=target.isa, sha256=digest,
        size_bytes=archive.stat().st_size, uri=uri, accepted_on=accepted_on, manifest=manifest,
        accepted_at=files.utc_now(), data=data,
    )  # fmt: skip
    files.write_json(record, baseline)
    return record, baseline


def read_record(target: Target, recipe: str) -> tuple[Path, Baseline]:
    """Read the record of the accepted baseline.

    Returns:
        The record's path and the record.

    Raises:
        ToolchainError: there is none, it is damaged, or it is of another version, target, recipe or instruction set.
    """
    path = record_path(target.name, recipe)
    if not path.is_file():
        raise ToolchainError(
            f"no baseline of {recipe} on {target.name} was accepted ({path} is missing); accept the present bundle with "
            f"`toolchain accept --target {target.name} --recipe {recipe}` and commit that file, or name one with --reference"
        )
    try:
        row = files.read_json(path)
    except ToolchainError as reason:
        raise _unreadable(path) from reason
    try:
        baseline: Baseline = TypeAdapter(Baseline).validate_python(row)
    except ValidationError as reason:
        raise _unreadable(path) from reason
    if baseline.schema not in READABLE_SCHEMAS:
        raise _unreadable(path)
    if (baseline.target, baseline.recipe) != (target.name, recipe):
        raise ToolchainError(
            f"{path} is the baseline of {baseline.recipe} on {baseline.target}, not of {recipe} on {target.name}"
        )
    if baseline.isa != target.isa:
        raise ToolchainError(
            f"{path} was accepted for {baseline.isa}, but {target.name} is {target.isa} now; accept a bundle again: toolchain accept"
        )
    return path, baseline


def _unreadable(path: Path) -> ToolchainError:
    return ToolchainError(
        f"{path} is not a baseline record that this version reads (schema {SCHEMA} or older); restore it from version "
        "control, or accept a bundle again: toolchain accept"
    )


def fetch_archive(record: Path, baseline: Baseline, cache: Path) -> Path:
    """Return the path of the baseline's archive after checking its hash; downloads are kept in `cache`.

    Raises:
        ToolchainError: the archive is missing, or it is not the one that was accepted.
    """
    if _scheme(baseline.uri) in REMOTE_SCHEMES:
        archive = cache / f"{baseline.sha256}.tar"
        if not archive.exists() or files.sha256_file(archive) != baseline.sha256:
            _download(record, baseline, archive)
    else:
        archive = record.parent / baseline.uri  # an absolute path stays one
        if not archive.is_file():
            raise ToolchainError(
                f"the baseline's archive is not at {archive}; copy it there, or accept another bundle: toolchain accept"
            )
    if (given := files.sha256_file(archive)) != baseline.sha256:
        raise _wrong_archive(str(archive), given, record, baseline)
    return archive


def _wrong_archive(location: str, given: str, record: Path, baseline: Baseline) -> ToolchainError:
    return ToolchainError(
        f"{location} is not the archive that was accepted: its SHA-256 is {given[:16]}..., {record} says "
        f"{baseline.sha256[:16]}...; it was not opened"
    )


def _scheme(uri: str) -> str:
    try:
        return urllib.parse.urlparse(uri).scheme
    except ValueError as reason:
        raise ToolchainError(f"{uri!r} is neither a folder nor an http address: {reason}") from reason


def _download(record: Path, baseline: Baseline, archive: Path) -> None:
    progress.log(f"download the baseline from {baseline.uri}")
    with files.open_atomic(archive) as out:
        try:  # inside open_atomic, which would report a broken network as a full disk
            with urllib.request.urlopen(baseline.uri, timeout=TIMEOUT_SECONDS) as source:  # noqa: S310  http only
                body = source.read(baseline.size_bytes + 1)
        except (OSError, ValueError, http.client.HTTPException) as reason:
            raise ToolchainError(f"cannot download the baseline from {baseline.uri}: {reason}") from reason
        if (given := hashlib.sha256(body).hexdigest()) != baseline.sha256:
            raise _wrong_archive(baseline.uri, given, record, baseline)
        out.write(body)
