"""Find the format of a dataset (class folders, a CSV, ...) and list its labelled images; nothing slow is imported.

A format is a file in `formats/`: all of them are asked whether a path looks like theirs, in the order of their `ORDER`.
"""

import dataclasses
import importlib
import shutil
from pathlib import Path
from typing import Protocol, cast

from toolchain.config.dataset import Domain
from toolchain.core import files, progress, registry
from toolchain.core.errors import ToolchainError
from toolchain.data import unlabelled_images
from toolchain.data.formats.folders import folder_layout, system_files
from toolchain.data.formats.folders.folder_layout import WHOLE
from toolchain.data.formats.tables import class_list
from toolchain.data.labelled_files import LabelledFiles

HOW_TO_NAME = "give one with DATA=folder or --data folder"


class DatasetFormat(Protocol):
    """A module in `formats/`."""

    ORDER: int  # the first format that recognises a path reads it; class folders come last
    EXPECTED: str  # how a dataset of this format looks, for messages

    def recognise(self, path: Path) -> bool:
        """Return whether a file or folder looks like this format; reads no more than its first lines."""
        ...

    def read(self, path: Path, domain: Domain, cache: Path) -> LabelledFiles:
        """List the images; `cache` is a folder for those that have to be written as files first."""
        ...


def list_formats() -> list[DatasetFormat]:
    """Return all formats in the order in which they are asked."""
    formats = [cast(DatasetFormat, registry.load_module("formats", name)) for name in registry.list_modules("formats")]
    return sorted(formats, key=lambda each: each.ORDER)


def read(domain: Domain, cache: Path) -> LabelledFiles:
    """List the labelled images of a dataset, whatever its format.

    Args:
        domain: the dataset.
        cache: folder in which a bundled source and the images of parquet files are written.

    Raises:
        ToolchainError: no path is named, it does not exist or may not be read, no format recognises it, or its labels
            cannot be read. What training alone rejects is in `LabelledFiles.problem`.
    """
    if not domain.has_labels:
        return unlabelled_images.read(domain)
    path = locate(domain, cache)
    chosen = next((each for each in list_formats() if each.recognise(path)), None)
    if chosen is None:
        raise ToolchainError(_describe_unknown(path))
    if domain.labels:
        domain = dataclasses.replace(domain, classes=class_list.read_names(Path(domain.labels)))
    return chosen.read(path, domain, cache)


def check(domain: Domain, cache: Path) -> None:
    """Check that a dataset's labels can be read; log what it is read as and what a user should know about it.

    Raises:
        ToolchainError: as `read`; or training rejects it.
    """
    if domain.source == "folder":
        labelled = read(domain, cache)
        if labelled.problem:
            raise ToolchainError(labelled.problem)
        announce(labelled)
        if domain.unlabelled and domain.has_labels:
            count = len(unlabelled_images.list_files(Path(domain.unlabelled)))
            progress.log(f"data: {count:,} images without labels in {domain.unlabelled} are trained on, too")


def check_readable(domain: Domain, cache: Path) -> None:
    """Check that a dataset's labels can be read, even where training would reject it; log what it is read as.

    Raises:
        ToolchainError: as `read`.
    """
    if domain.source == "folder":
        announce(read(domain, cache))


def check_data_flag(path: str, cache: Path) -> None:
    """Check that the dataset that `--data` names can be read; "": it is not given.

    Raises:
        ToolchainError: as `read`.
    """
    if path:
        check_readable(Domain(name="--data", path=path), cache)


def announce(labelled: LabelledFiles) -> None:
    """Log what a dataset is read as, in one line, and a line for each note."""
    counts = {name: sum(map(len, by_class.values())) for name, by_class in labelled.images.items() if name != WHOLE}
    splits = ", ".join(f"{name} {count:,}" for name, count in counts.items()) or "splits are drawn"
    classes = f"{len(labelled.classes):,} classes, " if len(labelled.classes) > 1 else ""
    progress.log(
        f"data: {labelled.path} is read as {labelled.title}: {classes}{labelled.file_count:,} images ({splits})"
    )
    notes = list(labelled.notes)
    if not labelled.tables:
        notes.append(system_files.describe_system_files(system_files.list_system_files(labelled.path)))
        notes.append(folder_layout.describe_unread_images(folder_layout.list_unread_images(labelled.path)))
    else:
        notes.append(folder_layout.describe_unread_images(labelled.unread_images))
    for note in filter(None, notes):
        progress.log(f"data: {note}")


def locate(domain: Domain, cache: Path) -> Path:
    """Return the file or folder of a dataset; write a bundled source to `cache` first.

    Raises:
        ToolchainError: none is named, it does not exist, or it may not be read.
    """
    if domain.source != "folder":
        return _write_source(domain.source, cache / domain.source)
    if not domain.path:
        raise ToolchainError(f"domain {domain.name!r} has no image folder; {HOW_TO_NAME}")
    path = Path(domain.path)
    if not path.exists():
        raise ToolchainError(f"image folder {path} does not exist; {HOW_TO_NAME}")
    try:
        if path.is_dir():
            next(path.iterdir(), None)
        else:
            path.open("rb").close()
    except OSError as reason:
        raise ToolchainError(f"{path} cannot be read: {reason.strerror}; {HOW_TO_NAME}") from reason
    return path


def _write_source(name: str, folder: Path) -> Path:
    """Write a bundled source into `folder`, unless it lies there, and return the folder of its classes."""
    with files.lock_folder(folder, wait=True):
        source = importlib.import_module(f"toolchain.data.sources.{name}")
        version, mark = files.sha256_file(Path(str(source.__file__))), folder / "COMPLETE"
        if not mark.exists() or mark.read_text() != version:
            shutil.rmtree(folder / "images", ignore_errors=True)
            source.write(folder / "images")
            files.write_text(mark, version)
    return folder / "images"


def _describe_unknown(path: Path) -> str:
    """Return the error message for a file that no format recognises."""
    advice = {
        ".xlsx": "; in Excel: Save as, CSV UTF-8", ".xls": "; in Excel: Save as, CSV UTF-8",
        ".ods": "; save it as CSV",
    }.get(path.suffix.lower(), "; unpack it if it is an archive")  # fmt: skip
    accepted = "; ".join(each.EXPECTED for each in list_formats())
    return f"{path} is a file of no format that is read here; accepted are: {accepted}{advice}"
