"""What can be timed: a bundle, its archive, or a bare model file; checked before any runtime sees it."""

import atexit
import math
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from toolchain.core import files as records
from toolchain.core import registry
from toolchain.core.errors import ToolchainError
from toolchain.core.types import Artefact, Precision
from toolchain.edge import archive
from toolchain.export import count_macs
from toolchain.export.runtime import load_runtime
from toolchain.measure import external_weights
from toolchain.measure.paired_timing import TimedModel


@dataclass(frozen=True, kw_only=True)
class ModelFile:
    """A model file as it is to be timed, and what is known of it."""

    timed_model: TimedModel
    artefact: Artefact
    manifest: Mapping[str, Any] | None  # None: a bare file
    bundle_folder: Path | None  # of the bundle
    dynamic_batch: bool = False  # a bare file that takes any number of pictures

    @property
    def name(self) -> str:
        """What it is called in tables."""
        return self.timed_model.name

    @property
    def macs(self) -> int | None:
        """Multiply-accumulates of one picture; None where neither a manifest nor an ONNX graph tells."""
        if self.manifest is not None and "macs" in self.manifest["model"]:
            return int(self.manifest["model"]["macs"])
        return count_macs.count(self.artefact.path) if self.artefact.path.suffix == ".onnx" else None

    def with_batch(self, count: int, folder: Path) -> "ModelFile":
        """The same for so many pictures at once, as a copy in `folder`.

        Raises:
            ToolchainError: its graph does not bear that.
        """
        room = load_runtime(self.timed_model.runtime)
        made = room.batched(self.artefact.path, count, folder / self.artefact.sha256[:16])
        shape = (count, *self.timed_model.shape[1:])
        try:
            answer = room.open(made, threads=1, precision=self.timed_model.precision).run(
                np.zeros(shape, self.timed_model.dtype)
            )
        except Exception as reason:  # the runtimes' own kinds
            raise ToolchainError(f"fixed to another number than {count} pictures") from reason
        if len(answer) != count:
            raise ToolchainError(f"answers {len(answer)} times for {count} pictures")
        return replace(self, timed_model=replace(self.timed_model, path=str(made), shape=shape), dynamic_batch=False)

    def with_python(self, python: str) -> "ModelFile":
        """The same in another interpreter."""
        return replace(self, timed_model=replace(self.timed_model, python=python))

    def on_board(self, device: str) -> "ModelFile":
        """The same on a board; empty: here."""
        return replace(self, timed_model=replace(self.timed_model, device=device))

    def renamed(self, name: str) -> "ModelFile":
        """The same under another name."""
        return replace(self, timed_model=replace(self.timed_model, name=name))


def open_model(path: Path, scratch: Path, *, runtime: str = "", threads: int = 0, precision: str = "") -> ModelFile:
    """A bundle's folder or archive, an ONNX file or an OpenVINO IR.

    Args:
        scratch: where an archive is unpacked, for as long as this process lives.
        runtime: for an ONNX file that is not for ONNX Runtime; a bundle has its own.
        threads: 0: as the manifest says, 1 for a bare file.
        precision: of a bare file; empty: f32, int8 where the file is quantized.

    Raises:
        ToolchainError: not there, of no known kind, changed since it was built, or with an input that cannot be made up.
    """
    if path.is_dir():
        return _bundle(path, threads)
    if not path.is_file():
        raise ToolchainError(f"{path} is not there; a bundle's folder or .tar, an .onnx or an OpenVINO .xml is wanted")
    if path.suffix == ".tar":
        return _bundle(archive.unpack(path, _fresh(scratch)), threads).renamed(path.stem)
    return _bare(path, runtime, threads or 1, precision)


def _bundle(folder: Path, threads: int) -> ModelFile:
    found, listed = archive.read_verified_manifest(folder), archive.list_checksummed_files(folder)
    known = registry.list_modules("runtimes")
    try:
        names, size = found["model"]["files"], tuple(found["input"]["shape"])
        runtime, precision = found["runtime"], found["precision"]
        threads, dtype = threads or int(found["threads"]), found["input"]["dtype"]
    except (KeyError, TypeError, ValueError) as reason:
        raise ToolchainError(
            f"{folder}: the manifest lacks {reason}; it is not one that this toolchain wrote"
        ) from reason
    if runtime not in known:
        raise ToolchainError(f"{folder} is for {runtime!r}; {registry.suggest(str(runtime), known)}")
    if not names or not set(names) <= listed:  # the sums vouch for plain names only
        raise ToolchainError(
            f"{folder}: SHA256SUMS does not vouch for {', '.join(map(str, names)) or 'any model'}; refused"
        )
    files = tuple(folder / name for name in names)
    if odd := [file.name for file in external_weights.list_companion_files(files[0]) if file.name not in names]:
        raise ToolchainError(
            f"{folder}: the manifest does not name {odd[0]}, which {files[0].name} would read; refused"
        )
    name = " ".join(str(found[key]) for key in ("recipe", "target") if key in found) or folder.resolve().name
    side = TimedModel(
        name=name, runtime=runtime, path=str(files[0]), precision=precision, threads=threads, shape=size, dtype=dtype
    )  # fmt: skip
    return ModelFile(timed_model=side, artefact=records.make_artefact(*files), manifest=found, bundle_folder=folder)


def _fresh(scratch: Path) -> Path:
    """A folder that nobody else has written to, gone when this process ends: what is cached may have been changed."""
    scratch.mkdir(parents=True, exist_ok=True)
    folder = tempfile.mkdtemp(dir=scratch)
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return Path(folder) / "bundle"


def _bare(path: Path, runtime: str, threads: int, precision: str) -> ModelFile:
    kinds = {str(Path(load_runtime(n).FILE_NAMES[0]).suffix): n for n in registry.list_modules("runtimes")}
    if path.suffix not in kinds:
        raise ToolchainError(f"{path}: of no kind that can be timed; there are .tar, {', '.join(sorted(kinds))}")
    chosen = runtime or kinds[path.suffix]
    companions = external_weights.list_companion_files(path)  # before any runtime follows them
    room = load_runtime(chosen)
    given_shape, dtype, integer = load_runtime(kinds[path.suffix]).signature(path)
    shape = static_shape(given_shape, path)
    given: Precision = next((p for p in room.PRECISIONS if p == precision), "int8" if integer else "f32")
    if precision and given != precision:
        raise ToolchainError(f"{path}: {chosen} has no {precision!r}; possible are {', '.join(room.PRECISIONS)}")
    side = TimedModel(
        name=path.stem, runtime=chosen, path=str(path), precision=given, threads=threads, shape=shape, dtype=dtype
    )  # fmt: skip
    return ModelFile(
        timed_model=side, artefact=records.make_artefact(path, *companions), manifest=None, bundle_folder=None,
        dynamic_batch=given_shape[0] is None,
    )  # fmt: skip


def static_shape(shape: Sequence[int | None], path: Path) -> tuple[int, ...]:
    """An input's shape with one picture where the number is open.

    Raises:
        ToolchainError: another side is open.
    """
    sides = [size for size in shape[1:] if size is not None]
    if not sides or len(sides) < len(shape) - 1:
        shown = ", ".join("?" if size is None else str(size) for size in shape)
        raise ToolchainError(f"{path}: its input's shape [{shown}] is open; export it with a fixed height and width")
    return (shape[0] or 1, *sides)


def make_names_unique(found: Sequence[ModelFile]) -> list[ModelFile]:
    """The same with names that differ."""
    names = [one.name for one in found]
    width = math.ceil(math.log10(len(found) + 1))
    return [
        one.renamed(f"{one.name} ({number:0{width}d})") if names.count(one.name) > 1 else one
        for number, one in enumerate(found, 1)
    ]
