"""Find drop-ins by file name: the folders are the registry, so a new file is all that a new target or runtime needs.

Configuration (targets, domains, recipes, shortlists) is searched in the working directory first, so that a user's own
files come before those that ship; code (criteria, runtimes, ...) is found in the package.
"""

import importlib
from difflib import get_close_matches
from pathlib import Path
from types import ModuleType
from typing import Literal

from toolchain.core.errors import ToolchainError

ConfigKind = Literal["targets", "calibration", "recipes", "shortlists"]
DropInKind = Literal["criteria", "formats", "runtimes", "scores", "sections", "sources", "updates", "verbs"]
PACKAGE_FOLDER = Path(__file__).resolve().parent.parent
DROP_IN_FOLDERS = {  # relative to the package
    "criteria": "pruning/criteria",
    "formats": "data/formats",
    "runtimes": "export/runtimes",
    "scores": "selection/scores",
    "sections": "report/sections",
    "sources": "data/sources",
    "updates": "deploy/updates",
    "verbs": "cli/verbs",
}


def list_folders(kind: ConfigKind) -> list[Path]:
    """Return the folders to search, in order: in the working directory, in the package, and beside it in a clone."""
    folders = [Path.cwd() / kind, PACKAGE_FOLDER / kind]
    if (PACKAGE_FOLDER.parent / "pyproject.toml").exists():
        folders.append(PACKAGE_FOLDER.parent / kind)
    return [folder for folder in dict.fromkeys(folders) if folder.is_dir()]


def list_names(kind: ConfigKind) -> list[str]:
    """Return the names of all files of a kind, sorted."""
    return sorted({path.stem for folder in list_folders(kind) for path in folder.glob("*.toml")})


def find_file(kind: ConfigKind, name: str) -> Path:
    """Return the file of a name, or of a path that ends in .toml.

    Raises:
        ToolchainError: it does not exist; the message suggests the closest name and lists all.
    """
    if name.endswith(".toml"):
        if not Path(name).is_file():
            raise ToolchainError(f"{name} does not exist")
        return Path(name)
    for folder in list_folders(kind):
        if (folder / f"{name}.toml").is_file():
            return folder / f"{name}.toml"
    raise ToolchainError(f"there is no {_singular(kind)} {name!r}; {suggest(name, list_names(kind))}")


def _singular(kind: str) -> str:
    return {
        "targets": "target",
        "recipes": "recipe",
        "calibration": "domain",
        "criteria": "criterion",
        "updates": "update system",
    }.get(kind, kind[:-1])


def suggest(name: str, accepted: list[str]) -> str:
    """Return the second half of an error message: the closest accepted name, and all that are accepted."""
    close = get_close_matches(name, accepted, n=1) or get_close_matches(name.lower(), accepted, n=1)
    suggestion = f"did you mean {close[0]!r}? " if close else ""
    return f"{suggestion}Accepted: {', '.join(accepted) or 'none'}"


def list_modules(kind: DropInKind) -> list[str]:
    """Return the names of all drop-in modules of a kind, sorted."""
    return sorted(
        path.stem for path in (PACKAGE_FOLDER / DROP_IN_FOLDERS[kind]).glob("*.py") if not path.stem.startswith("_")
    )


def load_module(kind: DropInKind, name: str) -> ModuleType:
    """Import a drop-in module.

    Raises:
        ToolchainError: there is no module of that name.
    """
    if name not in list_modules(kind):
        raise ToolchainError(f"there is no {_singular(kind)} {name!r}; {suggest(name, list_modules(kind))}")
    return importlib.import_module(f"toolchain.{DROP_IN_FOLDERS[kind].replace('/', '.')}.{name}")
