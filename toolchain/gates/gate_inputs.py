"""Find and check the inputs of a gate: the candidate, the baseline and the test images."""

import os
from dataclasses import dataclass
from pathlib import Path

from toolchain.config.dataset import Domain
from toolchain.config.recipe import Recipe
from toolchain.config.target import Target
from toolchain.core.errors import ToolchainError
from toolchain.data import dataset_files
from toolchain.data.formats.folders.class_names import to_nfc
from toolchain.deploy import verify_bundle
from toolchain.gates import baselines, data_source
from toolchain.gates.data_source import DataSource
from toolchain.measure import model_files
from toolchain.measure.model_files import ModelFile

REQUIRED_MANIFEST_KEYS = ("target", "classes", "preprocess", "placement")


@dataclass(frozen=True, kw_only=True)
class GatePair:
    """The candidate of a recipe and the baseline that it is compared with."""

    recipe: str
    candidate: ModelFile
    baseline: ModelFile


@dataclass(frozen=True)
class GateImages:
    """Test images and the name of the class of each."""

    files: tuple[Path, ...]
    labels: tuple[str, ...]


def list_images(domain: Domain, cache: Path, pair: GatePair) -> GateImages:
    """Return the dataset's test images; class names are compared in Unicode form NFC, as macOS writes another one.

    Raises:
        ToolchainError: there are none, or one of their classes is missing in a bundle.
    """
    images = dataset_files.find_images(domain, cache)
    labels = tuple(to_nfc(images.classes[label]) for label in images.labels["test"])
    for model in (pair.candidate, pair.baseline):
        classes = model.manifest["classes"] if model.manifest else ()
        if unknown := set(labels) - {to_nfc(name) for name in classes}:
            raise ToolchainError(
                f"{model.bundle_folder} has no class {min(unknown)!r}, which the test images have; its classes: "
                f"{', '.join(classes)}"
            )
    return GateImages(tuple(images.files["test"]), labels)


def find_images(domain: Domain, data: DataSource | None, cache: Path, pair: GatePair) -> GateImages | str:
    """Return the test images that accuracy is compared on, or the reason why there are none.

    Args:
        domain: the recipe's dataset; with a folder of its own (such as one that the user named) it is taken.
        data: otherwise the dataset that the baseline was accepted with; None: not recorded.
        cache: folder in which a bundled source is written.
        pair: the models, whose classes are checked.

    Raises:
        ToolchainError: the dataset cannot be read, or has a class that a model does not.
    """
    if not domain.path and domain.source == "folder":
        if data is None:
            return "no test images are known: give their folder with --data, and `toolchain accept` will remember it"
        try:
            domain = data_source.restore(domain, data)
            data_source.check_unchanged(data, data_source.describe(domain, cache))
        except ToolchainError as reason:
            return f"{reason}; give the folder with --data, accept a bundle again, or --waive accuracy"
    return list_images(domain, cache, pair)


def read_data_source(recipe: Recipe, target: Target, out: Path, reference: Path | None) -> DataSource | None:
    """Return the dataset of the accepted baseline; where none is recorded, that of the recipe's last run."""
    if reference is None and baselines.record_path(target.name, recipe.name).is_file():
        _, baseline = baselines.read_record(target, recipe.name)
        if baseline.data is not None:
            return baseline.data
    return data_source.read_from_run(out / recipe.name / target.name)


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
    """Open the candidate and the baseline, and check that both are bundles for the target.

    Args:
        recipe: its name is that of the run and of the accepted baseline.
        target: what both must have been built for.
        out: folder of the runs; without `candidate`, the bundle of the recipe's last run there is taken.
        candidate: a bundle's folder or archive.
        reference: the baseline: a bundle's folder or archive; None: the accepted one, or, with `python`, the candidate itself.
        python: interpreter that the baseline runs in; empty: this one.
        device: board that both are timed on; empty: this machine.

    Raises:
        ToolchainError: a model is missing, was changed since it was built, or is not a bundle for the target.
    """
    scratch, bundle = out / "work" / "references", candidate or out / recipe.name / target.name / "bundle"
    if candidate is None and not bundle.is_dir():
        raise ToolchainError(
            f"there is no candidate at {bundle}; run `toolchain export --target {target.name} --recipe {recipe.name}` "
            "first, or name a bundle with --candidate"
        )
    tested = model_files.open_model(bundle, scratch, threads=target.threads)
    if reference is None and python:
        baseline = tested
    else:
        path = reference or _fetch_accepted(recipe, target, scratch)
        baseline = model_files.open_model(path, scratch, threads=target.threads)
    for model in (tested, baseline):
        if model.manifest is None:
            raise ToolchainError(
                f"{model.timed_model.path} is a bare model file; a gate compares bundles (folder or .tar)"
            )
        verify_bundle.refuse_not_accepted(model.manifest, model.bundle_folder or Path())
        if missing := [name for name in REQUIRED_MANIFEST_KEYS if name not in model.manifest]:
            raise ToolchainError(
                f"{model.bundle_folder}: the manifest lacks {', '.join(missing)}; this toolchain did not write it"
            )
        if model.manifest["target"] != target.name:
            raise ToolchainError(
                f"{model.bundle_folder} was built for {model.manifest['target']!r}, not for {target.name!r}"
            )
    return GatePair(
        recipe=recipe.name, candidate=tested.on_board(device), baseline=baseline.on_board(device).with_python(python)
    )


def _fetch_accepted(recipe: Recipe, target: Target, cache: Path) -> Path:
    record, baseline = baselines.read_record(target, recipe.name)
    return baselines.fetch_archive(record, baseline, cache)


def find_interpreter(environment: Path) -> str:
    """Return the path of a virtual environment's Python; a path of an interpreter is returned as it is.

    Raises:
        ToolchainError: there is none.
    """
    for path in (environment / "bin" / "python", environment / "Scripts" / "python.exe", environment):
        if path.is_file() and os.access(path, os.X_OK):
            return str(path.absolute())  # not resolved: a link tells Python which environment it is in
    raise ToolchainError(
        f"{environment} has no Python; give a virtual environment that has numpy and the runtime installed"
    )
