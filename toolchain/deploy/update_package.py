"""What an update system carries to a board: a bundle's archive, and the files that say where it goes.

The files come from templates in `toolchain/templates/<system>/`, in which `@word@` stands for a fact of the bundle; a team
puts its own beside them (`--templates`). Every system carries the same `install.sh`, which unpacks beside what runs,
checks hashes and answers, and switches last.
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
NAME_PATTERN = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")  # stands in shell scripts and in three other languages
DEVICE_TYPE_PATTERN = re.compile(r"[A-Za-z0-9][A-Za-z0-9 ._,+-]*")
FOLDER_PATTERN = re.compile(r"(/[A-Za-z0-9._-]+)+")
PLACEHOLDER = re.compile(r"@([a-z_]+)@")


@dataclass(frozen=True, kw_only=True)
class UpdatePackage:
    """A bundle that is whole, on its way to a kind of board."""

    archive: bytes
    manifest: Manifest
    placeholders: Mapping[str, str]  # that templates may use
    template_folders: tuple[Path, ...]  # folders, the first that has a file wins

    @property
    def name(self) -> str:
        """Of a package, unique for what is in it."""
        made = self.manifest
        return f"{made.recipe}-{made.target}-r{made.release}-{self.placeholders['digest'][:8]}"

    def fill_template(self, file: str, **more: str) -> bytes:
        """A template's text with every word filled in.

        Args:
            more: words of this file alone.

        Raises:
            ToolchainError: there is no such file, or it uses a word that is not known.
        """
        found = next((folder / file for folder in self.template_folders if (folder / file).is_file()), None)
        if found is None:
            raise ToolchainError(f"{file} is in none of {', '.join(map(str, self.template_folders))}")
        return _filled(found, {**self.placeholders, **more}).encode()


def _filled(path: Path, words: Mapping[str, str]) -> str:
    def value(match: re.Match[str]) -> str:
        if match[1] not in words:
            raise ToolchainError(f"{path}: @{match[1]}@ is no word; {suggest(match[1], sorted(words))}")
        return words[match[1]]

    try:
        return PLACEHOLDER.sub(value, path.read_text())
    except (OSError, UnicodeError) as reason:
        raise ToolchainError(f"cannot read {path}: {reason}") from reason


def prepare(bundle: Path, system: str, device: str, folder: str, templates: str) -> UpdatePackage:
    """A bundle's archive, checked, with what templates need to know of it.

    Args:
        system: its templates are used where `templates` has none.
        device: the board's type, as its update system knows it.
        folder: on the board, in which bundles are kept.
        templates: a folder, or the name of one that ships; "" for the system's own.

    Raises:
        ToolchainError: the archive is damaged, or a name cannot stand in a package.
    """
    body, manifest = verify_bundle.read_archive(bundle)
    for what, given, wanted in (
        ("--device-type", device, DEVICE_TYPE_PATTERN), ("--folder", folder, FOLDER_PATTERN), ("the recipe's name", manifest.recipe, NAME_PATTERN),
        ("the target's name", manifest.target, NAME_PATTERN),
    ):  # fmt: skip
        if not wanted.fullmatch(given):
            raise ToolchainError(f"{what} {given!r} cannot stand in a package; it must match {wanted.pattern}")
    digest = hashlib.sha256(body).hexdigest()
    words = {
        "recipe": manifest.recipe, "target": manifest.target, "release": str(manifest.release), "digest": digest,
        "runtime": manifest.runtime, "device": device, "folder": folder, "version": f"{manifest.release}.0.0",
    }  # fmt: skip
    return UpdatePackage(
        archive=body, manifest=manifest, placeholders=words, template_folders=_folders(system, templates)
    )


def _folders(system: str, given: str) -> tuple[Path, ...]:
    own = TEMPLATES_FOLDER / system, TEMPLATES_FOLDER
    if not given:
        return own
    for place in (Path(given), TEMPLATES_FOLDER / given):
        if place.is_dir():
            known = {path.name for folder in own for path in folder.iterdir() if path.is_file()}
            if not known & {path.name for path in place.iterdir()}:
                raise ToolchainError(
                    f"--templates {given}: holds none of what {system} is made of: {', '.join(sorted(known))}"
                )
            return (place, *own)
    raise ToolchainError(
        f"--templates {given}: no such folder; {suggest(given, sorted(p.name for p in TEMPLATES_FOLDER.iterdir() if p.is_dir()))}"
    )


def pad(body: bytes, block: int) -> bytes:
    """With zeros up to a multiple of `block`."""
    return body + b"\0" * (-len(body) % block)
