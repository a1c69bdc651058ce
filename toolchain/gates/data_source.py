"""Where a run's labelled images came from, and a digest to recognise them by, so that a gate finds them again by itself.

Holds names, counts and one hash; never images.
"""

import dataclasses
import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from pydantic import TypeAdapter, ValidationError

from toolchain.config.dataset import Domain
from toolchain.core import files
from toolchain.core.errors import ToolchainError
from toolchain.data import dataset_files, dataset_format
from toolchain.data.formats.folders.class_names import to_nfc

RUN_FILE = "measurements.json"


@dataclass(frozen=True, kw_only=True)
class DataSource:
    """The dataset of a run."""

    __pydantic_config__ = {"extra": "forbid"}
    source: str  # "folder", or the name of a bundled source
    folder: str  # or table of labels; relative to the repository if inside it, otherwise absolute; "": bundled
    classes: tuple[str, ...]
    images: int  # of all splits
    sha256: str  # of the relative name and the size of every image file, and of the files that hold the labels
    images_folder: str = ""  # as `folder`: the domain's `images`, which a table's file names are relative to
    labels: str = ""  # as `folder`: the domain's file of class names
    label_column: str = ""  # the domain's


def describe(domain: Domain, cache: Path) -> DataSource:
    """Describe the dataset by its file names and sizes; no image is read.

    Args:
        domain: the dataset.
        cache: folder in which a bundled source is written.

    Raises:
        ToolchainError: there is no folder, or no image in it.
    """
    labelled = dataset_format.read(domain, cache)
    if labelled.is_guess:
        raise ToolchainError(labelled.problem)
    by_class = dataset_files.merge_splits(labelled)
    paths = sorted(path for paths in by_class.values() for path in paths)
    return DataSource(
        source=domain.source,
        folder=_relative_to_repository(labelled.path) if domain.source == "folder" else "",
        classes=tuple(by_class),
        images=len(paths),
        sha256=_hash_names_and_sizes(labelled.shown_root, paths, labelled.tables),
        images_folder=_relative_to_repository(Path(domain.images)) if domain.images else "",
        labels=_relative_to_repository(Path(domain.labels)) if domain.labels else "",
        label_column=domain.label_column,
    )


def read_from_run(folder: Path) -> DataSource | None:
    """Return the dataset that a finished run recorded in its measurements.json; None where it recorded none.

    Raises:
        ToolchainError: the file is damaged.
    """
    path = folder / RUN_FILE
    row = files.read_json(path).get("data") if path.is_file() else None
    try:
        return TypeAdapter(DataSource).validate_python(row) if row else None
    except ValidationError as reason:
        raise ToolchainError(f"{path} is damaged; run `toolchain export` again") from reason


def locate(data: DataSource) -> Path:
    """Return the folder, or the table of labels, that a dataset was read from.

    Raises:
        ToolchainError: it does not exist any more.
    """
    return _find(data.folder, "image folder" if not Path(data.folder).suffix else "dataset")


def restore(domain: Domain, data: DataSource) -> Domain:
    """Return the dataset description with the images and labels of a recorded dataset.

    Raises:
        ToolchainError: one of its files or folders does not exist any more.
    """
    return dataclasses.replace(
        domain,
        source=data.source,
        path=str(locate(data)) if data.source == "folder" else "",
        images=str(_find(data.images_folder, "image folder")) if data.images_folder else "",
        labels=str(_find(data.labels, "file of class names")) if data.labels else "",
        classes=() if data.labels else domain.classes,
        label_column=data.label_column,
    )


def _find(recorded: str, title: str) -> Path:
    path = _find_repository() / recorded  # an absolute path stays one
    if not path.exists():
        raise ToolchainError(f"the {title} {recorded}, which the baseline was accepted with, does not exist any more")
    return path


def check_unchanged(accepted: DataSource, present: DataSource) -> None:
    """Check that a folder still holds the images that the baseline was accepted with.

    Raises:
        ToolchainError: it holds other classes or images.
    """
    if changed := set(map(to_nfc, accepted.classes)) ^ set(map(to_nfc, present.classes)):
        raise ToolchainError(
            f"the image folder {accepted.folder} has other classes than when the baseline was accepted: "
            f"{', '.join(sorted(changed))}"
        )
    if accepted.sha256 != present.sha256:
        raise ToolchainError(
            f"the image folder {accepted.folder} holds other images than when the baseline was accepted "
            f"({accepted.images} then, {present.images} now)"
        )


def _hash_names_and_sizes(root: Path, paths: Iterable[Path], tables: Iterable[Path]) -> str:
    total = hashlib.sha256()
    for table in tables:
        total.update(f"{files.sha256_file(table)}\n".encode())
    for path in paths:
        name = path.relative_to(root).as_posix().encode(errors="surrogateescape")
        total.update(f"{path.stat().st_size} ".encode() + name + b"\n")
    return total.hexdigest()


def _find_repository() -> Path:
    """Return the folder of the git repository that the working directory lies in; without one, the working directory."""
    here = Path.cwd()
    return next((folder for folder in (here, *here.parents) if (folder / ".git").exists()), here)


def _relative_to_repository(folder: Path) -> str:
    repository, folder = _find_repository().resolve(), folder.resolve()
    return folder.relative_to(repository).as_posix() if folder.is_relative_to(repository) else str(folder)
