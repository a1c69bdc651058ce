"""The folder is the registry: what exists is what lies in the folders, by file name.

Data (targets, calibration, recipes) is looked for in the working directory first, so that a user's own repository
comes before what ships with the package; code (criteria, runtimes) is found in the package.
"""

import importlib
from difflib import get_close_matches
from pathlib import Path
from types import ModuleType
from typing import Literal

from toolchain.core.errors import ToolchainError

ConfigKind = Literal["targets", "calibration", "recipes", "shortlists"]
DropInKind = Literal["criteria", "runtimes", "scores", "sections", "sources", "updates", "verbs"]
PACKAGE_FOLDER = Path(__file__).resolve().parent.parent
DROP_IN_FOLDERS = {  # where each kind of drop-in lies
    "criteria": "pruning/criteria",
    "runtimes": "export/runtimes",
    "scores": "selection/scores",
    "sections": "report/sections",
    "sources": "data/sources",
    "updates": "deploy/updates",
    "verbs": "cli/verbs",
}


def list_folders(kind: ConfigKind) -> list[Path]:
    """Where files of a kind are looked for, first match wins: here, in the package, beside it in a clone."""
    places = [Path.cwd() / kind, PACKAGE_FOLDER / kind]
    if (PACKAGE_FOLDER.parent / "pyproject.toml").exists():
        places.append(PACKAGE_FOLDER.parent / kind)
    return [place for place in dict.fromkeys(places) if place.is_dir()]


def list_names(kind: ConfigKind) -> list[str]:
    """All names of a kind."""
    return sorted({path.stem for folder in list_folders(kind) for path in folder.glob("*.toml")})


def find_file(kind: ConfigKind, name: str) -> Path:
    """The file of a name, or of a path that ends in .toml.

    Raises:
        ToolchainError: there is none; offers the nearest name and lists all.
    """
    if name.endswith(".toml"):
        if not Path(name).is_file():
            raise ToolchainError(f"{name} is not there")
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
    """The second half of an error message: what was probably meant, and everything that is accepted."""
    close = get_close_matches(name, accepted, n=1) or get_close_matches(name.lower(), accepted, n=1)
    meant = f"did you mean {close[0]!r}? " if close else ""
    return f"{meant}There are: {', '.join(accepted) or 'none'}"


def list_modules(kind: DropInKind) -> list[str]:
    """Names of all drop-in modules of a kind."""
    return sorted(path.stem for path in (PACKAGE_FOLDER / DROP_IN_FOLDERS[kind]).glob("*.py") if not path.stem.startswith("_"))


def load_module(kind: DropInKind, name: str) -> ModuleType:
    """Imports one drop-in module.

    Raises:
        ToolchainError: there is none of that name.
    """
    if name not in list_modules(kind):
        raise ToolchainError(f"there is no {_singular(kind)} {name!r}; {suggest(name, list_modules(kind))}")
    return importlib.import_module(f"toolchain.{DROP_IN_FOLDERS[kind].replace('/', '.')}.{name}")
