"""Where the code of the user's model lies: the line that an error came from, and a hash of everything that was imported."""

import re
import sys
import traceback
from pathlib import Path
from types import ModuleType

from torch import nn

from toolchain.core import files, registry

IMPORTED_NAME = re.compile(r"^\s*(?:import|from)\s+(\w+)", re.MULTILINE)


def describe_line(error: BaseException, folder: Path) -> str:
    """Return the innermost line below `folder` that an error passed through: its file, number and text; "" for none."""
    frames = traceback.extract_tb(error.__traceback__)
    inside = [frame for frame in frames if _lies_in(frame.filename, folder)]
    if isinstance(error, SyntaxError) and error.filename and _lies_in(error.filename, folder):
        return f"in {Path(error.filename).name}, line {error.lineno}: {(error.text or '').strip()}"
    if not inside:
        return f"in {frames[-1].filename}, line {frames[-1].lineno}" if frames else ""
    frame = inside[-1]
    return f"in {Path(frame.filename).resolve().relative_to(folder.resolve())}, line {frame.lineno}: {frame.line}"


def hash_sources(model: nn.Module) -> str:
    """Return a hash of the user's code that a model's classes come from; "" where all come from installed libraries.

    The code is every imported file below the folders of those classes: what a class's `forward` calls counts too.
    """
    folders = {_source_folder(sys.modules.get(type(module).__module__)) for module in model.modules()} - {None}
    sources = {
        str(path.relative_to(folder)): files.sha256_file(path)
        for folder in folders
        if folder is not None
        for path in _list_imported_files(folder)
    }
    return files.digest(sources) if sources else ""


def find_folder(model: nn.Module) -> Path | None:
    """Return the folder of the user's code that a model's classes come from; None for a model of a library."""
    folders = (_source_folder(sys.modules.get(type(module).__module__)) for module in model.modules())
    return next((folder for folder in folders if folder is not None), None)


def find_clash(folder: Path) -> tuple[str, Path] | None:
    """Return a module that files in `folder` import, and the file of another folder that is loaded under its name already.

    Python would take the loaded one without a word.
    """
    sources = sorted(folder.glob("*.py"))
    imported = {name for source in sources for name in IMPORTED_NAME.findall(source.read_text(errors="replace"))}
    for source in (*sources, *sorted(folder.glob("*/__init__.py"))):
        name = source.stem if source.parent == folder else source.parent.name
        loaded = getattr(sys.modules.get(name), "__file__", None)
        if loaded and name in imported and not _is_installed(Path(loaded)) and not _lies_in(loaded, folder):
            return source.name if source.parent == folder else f"{name}/", Path(loaded)
    return None


def _source_folder(module: ModuleType | None) -> Path | None:
    """Return the folder that the imports of a user's module start from; None for an installed library's module."""
    file = getattr(module, "__file__", None)
    if module is None or not file or _is_installed(Path(file)):
        return None
    path = Path(file).resolve()
    depth = module.__name__.count(".") + (path.name == "__init__.py")
    return path.parents[depth]


def _list_imported_files(folder: Path) -> list[Path]:
    paths = {
        Path(file).resolve()
        for module in list(sys.modules.values())
        if (file := getattr(module, "__file__", None)) and not _is_installed(Path(file)) and _lies_in(file, folder)
    }
    return sorted(path for path in paths if path.is_file())


def _is_installed(file: Path) -> bool:
    """Return whether a file belongs to Python, to an installed library or to the toolchain."""
    path = file.resolve()
    return (
        bool({"site-packages", "dist-packages"} & set(path.parts))
        or path.is_relative_to(registry.PACKAGE_FOLDER)
        or path.is_relative_to(Path(sys.base_prefix) / "lib")
    )


def _lies_in(file: str, folder: Path) -> bool:
    return Path(file).resolve().is_relative_to(folder.resolve()) and not _is_installed(Path(file))
