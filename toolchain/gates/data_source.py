"""Where a run's labelled images came from, and a digest to recognise them by, so that a gate finds them again by itself.

Holds names, counts and one hash; never images.
"""

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from pydantic import TypeAdapter, ValidationError

from toolchain.config.dataset import Domain
from toolchain.core import files
from toolchain.core.errors import ToolchainError
from toolchain.data.formats import image_folder
from toolchain.data.formats.folders.class_names import to_nfc

RUN_FILE = "measurements.json"


@dataclass(frozen=True, kw_only=True)
class DataSource:
    """The dataset of a run."""

    __pydantic_config__ = {"extra": "forbid"}
    source: str  # "folder", or the name of a bundled source
    folder: str  # relative to the repository where it lies inside it, otherwise absolute; "" for a bundled source
    classes: tuple[str, ...]
    images: int  # of all splits
    sha256: str  # of the relative name and the size of every image file


def describe(domain: Domain, cache: Path) -> DataSource:
    """Describe the dataset by its file names and sizes; no image is read.

    Args:
        domain: the dataset.
        cache: folder in which a bundled source is written.

    Raises:
        ToolchainError: there is no folder, or no image in it.
    """
    by_class = image_folder.list_by_class(domain, cache)
    root = image_folder.locate_root(domain, cache)
    paths = sorted(path for paths in by_class.values() for path in paths)
    return DataSource(
        source=domain.source,
        folder=_relative_to_repository(root) if domain.source == "folder" else "",
        classes=tuple(by_class),
        images=len(paths),
        sha256=_hash_names_and_sizes(root, paths),
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
    """Return the folder that a dataset was read from.

    Raises:
        ToolchainError: it does not exist any more.
    """
    folder = _find_repository() / data.folder  # an absolute path stays one
    if not folder.is_dir():
        raise ToolchainError(
            f"the image folder {data.folder}, which the baseline was accepted with, does not exist any more"
        )
    return folder


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


def _hash_names_and_sizes(root: Path, paths: Iterable[Path]) -> str:
    total = hashlib.sha256()
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
