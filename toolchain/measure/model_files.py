"""Open what can be timed: a bundle, its archive or a bare model file; each is checked before a runtime opens it."""

import atexit
import math
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from toolchain.core import files, registry
from toolchain.core.errors import ToolchainError
from toolchain.core.types import Artefact, Precision
from toolchain.edge import archive
from toolchain.export import count_macs
from toolchain.export.runtime import load_runtime
from toolchain.measure import external_weights
from toolchain.measure.paired_timing import TimedModel


@dataclass(frozen=True, kw_only=True)
class ModelFile:
    """A model file as it is timed, and what is known of it."""

    timed_model: TimedModel
    artefact: Artefact
    manifest: Mapping[str, Any] | None  # None: a bare file
    bundle_folder: Path | None  # None: a bare file
    dynamic_batch: bool = False  # a bare file whose input takes any number of images

    @property
    def name(self) -> str:
        """The model's name in tables."""
        return self.timed_model.name

    @property
    def macs(self) -> int | None:
        """Multiply-accumulates of one image; None where neither a manifest nor an ONNX graph gives them."""
        if self.manifest is not None and "macs" in self.manifest["model"]:
            return int(self.manifest["model"]["macs"])
        return count_macs.count(self.artefact.path) if self.artefact.path.suffix == ".onnx" else None

    def with_batch(self, batch_size: int, folder: Path) -> "ModelFile":
        """Return the model with another fixed batch size, as a copy in `folder`.

        Raises:
            ToolchainError: the graph does not run with that batch size.
        """
        runtime = load_runtime(self.timed_model.runtime)
        path = runtime.batched(self.artefact.path, batch_size, folder / self.artefact.sha256[:16])
        shape = (batch_size, *self.timed_model.shape[1:])
        try:
            outputs = runtime.open(path, threads=1, precision=self.timed_model.precision).run(
                np.zeros(shape, self.timed_model.dtype)
            )
        except Exception as reason:  # each runtime raises its own types
            raise ToolchainError(f"the graph does not run with batch size {batch_size}") from reason
        if len(outputs) != batch_size:
            raise ToolchainError(f"the graph gives {len(outputs)} predictions for a batch of {batch_size} images")
        return replace(self, timed_model=replace(self.timed_model, path=str(path), shape=shape), dynamic_batch=False)

    def with_python(self, python: str) -> "ModelFile":
        """Return the model as it is timed in another interpreter."""
        return replace(self, timed_model=replace(self.timed_model, python=python))

    def on_board(self, device: str) -> "ModelFile":
        """Return the model as it is timed on a board, such as "ssh:user@host"; empty: on this machine."""
        return replace(self, timed_model=replace(self.timed_model, device=device))

    def renamed(self, name: str) -> "ModelFile":
        """Return the model under another name."""
        return replace(self, timed_model=replace(self.timed_model, name=name))


def open_model(path: Path, scratch: Path, *, runtime: str = "", threads: int = 0, precision: str = "") -> ModelFile:
    """Open a bundle's folder or archive, an ONNX file or an OpenVINO IR.

    Args:
        path: of the bundle or model.
        scratch: where an archive is unpacked, for as long as this process lives.
        runtime: for an ONNX file that another runtime than ONNX Runtime runs; a bundle names its own.
        threads: 0: as the manifest says, 1 for a bare file.
        precision: of a bare file; empty: int8 where the file is quantized, otherwise f32.

    Raises:
        ToolchainError: the file does not exist, is of no known format or was changed since it was built, or no input can
            be made for it.
    """
    if path.is_dir():
        return _open_bundle(path, threads)
    if not path.is_file():
        raise ToolchainError(
            f"{path} does not exist. Accepted: a bundle's folder or .tar, an .onnx file, an OpenVINO .xml file"
        )
    if path.suffix == ".tar":
        return _open_bundle(archive.unpack(path, _make_private_folder(scratch)), threads).renamed(path.stem)
    return _open_bare_file(path, runtime, threads or 1, precision)


def _open_bundle(folder: Path, threads: int) -> ModelFile:
    manifest, checksummed = archive.read_verified_manifest(folder), archive.list_checksummed_files(folder)
    runtimes = registry.list_modules("runtimes")
    try:
        names, shape = manifest["model"]["files"], tuple(manifest["input"]["shape"])
        runtime, precision = manifest["runtime"], manifest["precision"]
        threads, dtype = threads or int(manifest["threads"]), manifest["input"]["dtype"]
    except (KeyError, TypeError, ValueError) as reason:
        raise ToolchainError(
            f"{folder}: the manifest lacks {reason}. This toolchain did not write it; export the bundle again"
        ) from reason
    if runtime not in runtimes:
        raise ToolchainError(
            f"{folder}: the manifest names the runtime {runtime!r}; {registry.suggest(str(runtime), runtimes)}"
        )
    if (
        not names or not set(names) <= checksummed
    ):  # SHA256SUMS has plain names only, so no path leads out of the folder
        raise ToolchainError(
            f"{folder}: SHA256SUMS does not list {', '.join(map(str, names)) or 'any model'}, so the bundle is refused"
        )
    paths = tuple(folder / name for name in names)
    companions = external_weights.list_companion_files(paths[0])
    if unnamed := [companion.name for companion in companions if companion.name not in names]:
        raise ToolchainError(
            f"{folder}: {paths[0].name} reads {unnamed[0]}, which the manifest does not name, so the bundle is refused"
        )
    name = " ".join(str(manifest[key]) for key in ("recipe", "target") if key in manifest) or folder.resolve().name
    timed_model = TimedModel(
        name=name, runtime=runtime, path=str(paths[0]), precision=precision, threads=threads, shape=shape, dtype=dtype
    )  # fmt: skip
    return ModelFile(
        timed_model=timed_model, artefact=files.make_artefact(*paths), manifest=manifest, bundle_folder=folder
    )


def _make_private_folder(scratch: Path) -> Path:
    """Return a path in a new folder that is removed when this process ends.

    An earlier unpacked copy is not reused, because another process may have changed it.
    """
    scratch.mkdir(parents=True, exist_ok=True)
    folder = tempfile.mkdtemp(dir=scratch)
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return Path(folder) / "bundle"


def _open_bare_file(path: Path, runtime: str, threads: int, precision: str) -> ModelFile:
    runtimes_by_suffix = {
        str(Path(load_runtime(name).FILE_NAMES[0]).suffix): name for name in registry.list_modules("runtimes")
    }
    if path.suffix not in runtimes_by_suffix:
        raise ToolchainError(
            f"{path} has no file format that can be timed. Accepted: .tar, {', '.join(sorted(runtimes_by_suffix))}"
        )
    runtime_name = runtime or runtimes_by_suffix[path.suffix]
    companions = external_weights.list_companion_files(path)  # checked before any runtime reads them
    precisions = load_runtime(runtime_name).PRECISIONS
    input_shape, dtype, quantized = load_runtime(runtimes_by_suffix[path.suffix]).signature(path)
    shape = static_shape(input_shape, path)
    timed_precision: Precision = next(
        (accepted for accepted in precisions if accepted == precision), "int8" if quantized else "f32"
    )
    if precision and timed_precision != precision:
        raise ToolchainError(
            f"{path}: {runtime_name} has no precision {precision!r}. Accepted: {', '.join(precisions)}"
        )
    timed_model = TimedModel(
        name=path.stem, runtime=runtime_name, path=str(path), precision=timed_precision, threads=threads, shape=shape,
        dtype=dtype,
    )  # fmt: skip
    return ModelFile(
        timed_model=timed_model, artefact=files.make_artefact(path, *companions), manifest=None, bundle_folder=None,
        dynamic_batch=input_shape[0] is None,
    )  # fmt: skip


def static_shape(shape: Sequence[int | None], path: Path) -> tuple[int, ...]:
    """Return an input's shape, with one image where the batch size is dynamic.

    Args:
        shape: of the input, None where a dimension is dynamic.
        path: of the model, for the message.

    Raises:
        ToolchainError: another dimension than the batch size is dynamic.
    """
    static = [dimension for dimension in shape[1:] if dimension is not None]
    if not static or len(static) < len(shape) - 1:
        shown = ", ".join("?" if dimension is None else str(dimension) for dimension in shape)
        raise ToolchainError(
            f"{path}: the input shape [{shown}] is dynamic. Export the model with a fixed height and width"
        )
    return (shape[0] or 1, *static)


def make_names_unique(models: Sequence[ModelFile]) -> list[ModelFile]:
    """Return the models, with a number after each name that occurs more than once."""
    names = [model.name for model in models]
    width = math.ceil(math.log10(len(models) + 1))
    return [
        model.renamed(f"{model.name} ({number:0{width}d})") if names.count(model.name) > 1 else model
        for number, model in enumerate(models, 1)
    ]
