"""A check of a model that is named, not at hand: read from the stage cache where nothing that decides it has changed.

The key is computed from names and files alone, so that a repeated check neither builds the model nor imports torch.
"""

import ast
import time
from pathlib import Path

from toolchain.config import model_reference
from toolchain.config.recipe import ModelSpec
from toolchain.config.target import Target
from toolchain.core import files, registry, stage_cache
from toolchain.measure import machine
from toolchain.selection.check_model.finding import ModelCheck, read_check

VERSION = 1
SOURCE_SUFFIXES = {".py", ".json", ".toml", ".yaml", ".yml"}  # that a user's model may be built from
MAX_SOURCES = 2000  # with more, nothing is cached


def check(
    name: str, spec: ModelSpec, classes: int | None, image_size: tuple[int, int], target: Target, work: Path
) -> ModelCheck:
    """Build and check a model, or read the result of an earlier check.

    Args:
        name: of the model in the report.
        spec: architecture and weights.
        classes: outputs of the head; None: the model's own.
        image_size: height and width, pixels.
        target: to compile for and to time on.
        work: the stage cache.

    Raises:
        ToolchainError: there is no such model or weights file, the runtime is not installed, or the board does not answer.
    """
    sources = _digest_sources(spec.name)
    key = files.digest(
        VERSION, name, spec, _digest_weights(spec), sources, classes, image_size, target, target.device,
        machine.describe(target.device), machine.versions(target),
    )  # fmt: skip
    with stage_cache.open_stage(work, "check-model", key) as stage:
        if stage.record is None or sources is None:
            # here, because it imports torch, which a cached check does not need
            from toolchain.selection.check_model import (
                run_checks,
                subject,
            )

            started = time.monotonic()
            model, weights, finding = subject.load(spec, classes)
            result = run_checks.check_model(
                name, model, image_size, target, stage.folder, weights=weights, load_finding=finding
            )
            stage = stage_cache.finish(stage, started, files.to_jsonable(result))
        assert stage.record is not None
        return read_check(stage.record)


def _digest_weights(spec: ModelSpec) -> str:
    """Return the hash of the weights file, or the name of published weights."""
    path = Path(spec.weights)
    if spec.weights.startswith("zoo:"):
        path = registry.PACKAGE_FOLDER / "models" / "zoo" / f"{spec.weights.removeprefix('zoo:')}.safetensors"
    return files.sha256_file(path) if spec.weights and path.is_file() else spec.weights


def _digest_sources(model_name: str) -> str | None:
    """Return a hash of the files that a user's model may be built from; "" for a library's, None where they are not known.

    These are the files beside the model's, and the packages in that folder that they import.
    """
    reference = model_reference.parse(model_name)
    if reference is None:
        return ""
    source = reference.source
    folder = Path(source).parent if source.endswith(".py") else Path()
    if not source.endswith(".py") and not (folder / source.partition(".")[0]).is_dir():
        return None  # an installed package
    if not folder.is_dir():
        return None
    paths = {path for path in folder.iterdir() if path.suffix in SOURCE_SUFFIXES and path.is_file()}
    pending = set(paths)
    while pending:
        new = {path for package in _list_imports(pending.pop()) for path in _list_package(folder / package)} - paths
        paths |= new
        pending |= new
        if len(paths) > MAX_SOURCES:
            return None
    return files.digest({str(path): files.sha256_file(path) for path in sorted(paths)})


def _list_imports(path: Path) -> set[str]:
    """Return the first parts of the names that a Python file imports; none where it cannot be read as Python."""
    try:
        tree = ast.parse(path.read_text()) if path.suffix == ".py" else ast.Module([], [])
    except (SyntaxError, ValueError):
        return set()
    names = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    names |= {node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) and node.module}
    return {name.partition(".")[0] for name in names}


def _list_package(folder: Path) -> list[Path]:
    """Return the files of a package that lies beside the model; none where there is no such folder."""
    return (
        [path for path in folder.rglob("*") if path.suffix in SOURCE_SUFFIXES and path.is_file()]
        if folder.is_dir()
        else []
    )
