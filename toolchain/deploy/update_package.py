"""Prepare what an update system installs on a board: a bundle's archive, an install script and a description.

Scripts and descriptions come from templates in `toolchain/deploy/templates/<system>/`, in which `@name@` is replaced by a
fact about the bundle; a team can use its own (`--templates`). All systems use the same `install.sh`, which unpacks beside
the running bundle, checks hashes and golden outputs, and switches over last.
"""

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from toolchain.core.errors import ToolchainError
from toolchain.core.registry import PACKAGE_FOLDER, suggest
from toolchain.deploy import verify_bundle
from toolchain.edge.manifest import Manifest

TEMPLATES_FOLDER = PACKAGE_FOLDER / "deploy" / "templates"
ARCHIVE_NAME = "bundle.tar"
INSTALL_SCRIPT = "install.sh"
NAME_PATTERN = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")  # safe in shell scripts and in the systems' own file formats
DEVICE_TYPE_PATTERN = re.compile(r"[A-Za-z0-9][A-Za-z0-9 ._,+-]*")
FOLDER_PATTERN = re.compile(r"(/[A-Za-z0-9._-]+)+")
PLACEHOLDER = re.compile(r"@([a-z_]+)@")


@dataclass(frozen=True, kw_only=True)
class UpdatePackage:
    """A verified bundle with everything that an update system needs to install it on one type of board."""

    archive: bytes
    manifest: Manifest
    placeholders: Mapping[str, str]  # values by name, for templates
    template_folders: tuple[Path, ...]  # searched in this order

    @property
    def name(self) -> str:
        """Return the package's name, unique for its content."""
        manifest = self.manifest
        return f"{manifest.recipe}-{manifest.target}-r{manifest.release}-{self.placeholders['digest'][:8]}"

    def fill_template(self, file: str, **extra: str) -> bytes:
        """Return a template with every placeholder replaced.

        Args:
            file: name of the template.
            extra: placeholders for this file only.

        Raises:
            ToolchainError: there is no such template, or it uses an unknown placeholder.
        """
        path = next((folder / file for folder in self.template_folders if (folder / file).is_file()), None)
        if path is None:
            raise ToolchainError(f"no template {file} in {', '.join(map(str, self.template_folders))}")
        return _replace_placeholders(path, {**self.placeholders, **extra}).encode()


def _replace_placeholders(path: Path, values: Mapping[str, str]) -> str:
    def value(match: re.Match[str]) -> str:
        if match[1] not in values:
            raise ToolchainError(f"{path}: unknown placeholder @{match[1]}@; {suggest(match[1], sorted(values))}")
        return values[match[1]]

    try:
        return PLACEHOLDER.sub(value, path.read_text())
    except (OSError, UnicodeError) as reason:
        raise ToolchainError(f"cannot read {path}: {reason}") from reason


def prepare(bundle: Path, system: str, device: str, folder: str, templates: str) -> UpdatePackage:
    """Read and check a bundle's archive, and collect what the templates need.

    Args:
        bundle: archive of the bundle.
        system: update system; its templates are used where `templates` has none.
        device: device type of the board, as its update system knows it.
        folder: folder on the board in which bundles are kept.
        templates: a folder, or the name of one that ships; "" for the system's own.

    Raises:
        ToolchainError: the archive is damaged, or a name has characters that are not allowed in a package.
    """
    body, manifest = verify_bundle.read_archive(bundle)
    for name, value, pattern in (
        ("--device-type", device, DEVICE_TYPE_PATTERN), ("--folder", folder, FOLDER_PATTERN), ("recipe name", manifest.recipe, NAME_PATTERN),
        ("target name", manifest.target, NAME_PATTERN),
    ):  # fmt: skip
        if not pattern.fullmatch(value):
            raise ToolchainError(f"{name} {value!r} is not allowed in a package; it must match {pattern.pattern}")
    digest = hashlib.sha256(body).hexdigest()
    placeholders = {
        "recipe": manifest.recipe, "target": manifest.target, "release": str(manifest.release), "digest": digest,
        "runtime": manifest.runtime, "device": device, "folder": folder, "version": f"{manifest.release}.0.0",
    }  # fmt: skip
    return UpdatePackage(
        archive=body,
        manifest=manifest,
        placeholders=placeholders,
        template_folders=_find_template_folders(system, templates),
    )


def _find_template_folders(system: str, templates: str) -> tuple[Path, ...]:
    """Return the folders to search for templates, the user's first."""
    shipped = TEMPLATES_FOLDER / system, TEMPLATES_FOLDER
    if not templates:
        return shipped
    for folder in (Path(templates), TEMPLATES_FOLDER / templates):
        if folder.is_dir():
            names = {path.name for place in shipped for path in place.iterdir() if path.is_file()}
            if not names & {path.name for path in folder.iterdir()}:
                raise ToolchainError(
                    f"--templates {templates}: the folder holds no template of {system}; "
                    f"it needs at least one of {', '.join(sorted(names))}"
                )
            return (folder, *shipped)
    names_that_ship = sorted(path.name for path in TEMPLATES_FOLDER.iterdir() if path.is_dir())
    raise ToolchainError(f"--templates {templates}: no such folder; {suggest(templates, names_that_ship)}")


def pad(body: bytes, block: int) -> bytes:
    """Return the bytes, padded with zeros to a multiple of `block`."""
    return body + b"\0" * (-len(body) % block)
