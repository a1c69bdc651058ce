"""What a gate compares: the candidate of the last run or a named one, the accepted reference or a named one, and pictures."""

import os
from dataclasses import dataclass
from pathlib import Path

from toolchain.config.dataset import Domain
from toolchain.config.recipe import Recipe
from toolchain.config.target import Target
from toolchain.core.errors import ToolchainError
from toolchain.data import image_folder
from toolchain.gates import baselines
from toolchain.measure import model_files
from toolchain.measure.model_files import ModelFile

REQUIRED_MANIFEST_KEYS = ("target", "classes", "preprocess", "placement")  # of a manifest


@dataclass(frozen=True, kw_only=True)
class GatePair:
    """What is compared with what."""

    recipe: str
    candidate: ModelFile
    baseline: ModelFile


@dataclass(frozen=True)
class GateImages:
    """Test pictures and their classes by name."""

    files: tuple[Path, ...]
    labels: tuple[str, ...]


def list_images(domain: Domain, cache: Path, compared: GatePair) -> GateImages:
    """The domain's test pictures.

    Raises:
        ToolchainError: there are none, or a bundle does not know one of their classes.
    """
    found = image_folder.find_images(domain, cache)
    labels = tuple(found.classes[label] for label in found.labels["test"])
    for one in (compared.candidate, compared.baseline):
        classes = one.manifest["classes"] if one.manifest else ()
        if unknown := set(labels) - set(classes):
            raise ToolchainError(
                f"{one.bundle_folder} does not know the class {min(unknown)!r} of the test pictures; it has {', '.join(classes)}"
            )
    return GateImages(tuple(found.files["test"]), labels)


def load_pair(
    recipe: Recipe,
    target: Target,
    out: Path,
    *,
    candidate: Path | None,
    reference: Path | None,
    python: str,
    device: str = "",
) -> GatePair:
    """Finds what is to be compared.

    Args:
        out: folder of the runs: the candidate is the last one's bundle, where none is named.
        reference: a bundle or archive; None: the accepted one, or, with `python`, the candidate itself.
        python: interpreter that the reference runs in; empty: this one.
        device: board that both are timed on; empty: this machine.

    Raises:
        ToolchainError: one is missing, was changed since it was built, or is no bundle.
    """
    scratch, own = out / "work" / "references", candidate or out / recipe.name / target.name / "bundle"
    if candidate is None and not own.is_dir():
        raise ToolchainError(
            f"there is no candidate at {own}; run `toolchain export --target {target.name} --recipe {recipe.name}` first, "
            "or name a bundle with --candidate"
        )
    tested = model_files.open_model(own, scratch, threads=target.threads)
    if reference is None and python:
        other = tested
    else:
        other = model_files.open_model(reference or _accepted(recipe, target, scratch), scratch, threads=target.threads)
    for one in (tested, other):
        if one.manifest is None:
            raise ToolchainError(
                f"{one.timed_model.path} is a bare model file; a gate compares bundles (folder or .tar)"
            )
        if lacking := [name for name in REQUIRED_MANIFEST_KEYS if name not in one.manifest]:
            raise ToolchainError(
                f"{one.bundle_folder}: the manifest lacks {', '.join(lacking)}; this toolchain did not write it"
            )
        if one.manifest["target"] != target.name:
            raise ToolchainError(
                f"{one.bundle_folder} was built for {one.manifest['target']!r}, not for {target.name!r}"
            )
    return GatePair(
        recipe=recipe.name, candidate=tested.on_board(device), baseline=other.on_board(device).with_python(python)
    )


def _accepted(recipe: Recipe, target: Target, cache: Path) -> Path:
    record, baseline = baselines.read_record(target, recipe.name)
    return baselines.fetch_archive(record, baseline, cache)


def find_interpreter(environment: Path) -> str:
    """The Python of a virtual environment, or the file itself.

    Raises:
        ToolchainError: there is none.
    """
    for path in (environment / "bin" / "python", environment / "Scripts" / "python.exe", environment):
        if path.is_file() and os.access(path, os.X_OK):
            return str(path.absolute())  # not resolved: a link tells Python which environment it is in
    raise ToolchainError(f"{environment} has no Python; name a virtual environment in which numpy and the runtime are")
