"""Convert the model that ships into the further forms that a target asks for, and compare each with the canonical model.

Only the canonical model was verified and timed. So every form is run on the same test images, and the manifest says how
far its logits are from the canonical model's.
"""

import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from toolchain.config import read_config
from toolchain.config.job import Job
from toolchain.config.packaging import C_ARRAY_FORM, CAMERA_FRAMES_FORM, ConvertedModel
from toolchain.config.target import Target
from toolchain.core import files, progress, stage_cache
from toolchain.core.errors import ToolchainError
from toolchain.core.types import Artefact, Preprocessing
from toolchain.data.decoded_dataset import Dataset
from toolchain.deploy import c_array, cpp_runner, npz
from toolchain.edge import run, served_pixels
from toolchain.edge.manifest import PackagedForm, TensorSpec
from toolchain.export.export_variants import Variant
from toolchain.export.passes import camera_input
from toolchain.export.runtime import load_runtime
from toolchain.measure import machine
from toolchain.measure.torch_parity import Predictions, quantization_step

VERSION = 1
COMPARED_IMAGES = 64  # test images that every form is compared on
GOLDEN_FRAMES = 4  # of them, kept in the bundle for the self-test
GOLDEN_FRAMES_FILE = "golden_frames.npz"
MIN_AGREEMENT = 0.95  # share of the images on which a form must predict the canonical model's class


@dataclass(frozen=True, kw_only=True)
class PackagedForms:
    """All further forms of a model, and their files."""

    forms: tuple[PackagedForm, ...] = ()
    files: tuple[
        Path, ...
    ] = ()  # of the forms; also golden frames and the C++ runner's sources, if the target wants them


def make_forms(job: Job, variant: Variant, predictions: Predictions, data: Dataset) -> PackagedForms:
    """Make the forms that the target asks for, or take them from the stage cache.

    Args:
        variant: the canonical model.
        predictions: its logits on the test split.
        data: the dataset at the model's input size.

    Raises:
        ToolchainError: a form cannot be made, or its predictions differ from the canonical model's.
    """
    target = job.target
    if not target.package.is_requested:
        return PackagedForms()
    key = files.digest(
        VERSION, variant.artefact.sha256, variant.precision, files.to_jsonable(target.package), data.preprocess, data.digest,
        load_runtime(target.runtime).fingerprint(), machine.vector_extensions(), target.threads, target.isa,
        cpp_runner.hash_sources() if target.package.sources else "",
    )  # fmt: skip
    with stage_cache.open_stage(job.work, "package", key) as stage:
        if stage.record is None:
            started = time.monotonic()
            forms = list(_convert(variant, predictions, target, data, stage.folder))
            if target.package.sources:
                cpp_runner.pack(stage.folder / cpp_runner.ARCHIVE_NAME)
            stage = stage_cache.finish(stage, started, {"forms": forms})
        rows = stage.record["forms"] if stage.record else ()
        made = tuple(read_config.to_dataclass(PackagedForm, row, str(stage.folder)) for row in rows)
        models = [stage.folder / name for form in made for name in form.files]
        golden = [stage.folder / GOLDEN_FRAMES_FILE] if target.package.input == "uint8" else []
        sources = [stage.folder / cpp_runner.ARCHIVE_NAME] if target.package.sources else []
        return PackagedForms(forms=made, files=(*models, *golden, *sources))


def _convert(
    variant: Variant, predictions: Predictions, target: Target, data: Dataset, folder: Path
) -> Iterator[PackagedForm]:
    """Write one form after the other to `folder`, under the file names that they ship with."""
    spec, runtime = target.package, load_runtime(target.runtime)
    comparison = _FormComparison(variant, predictions, target, data)
    source, stem = variant.artefact, "model"
    if spec.input == "uint8":
        size = spec.frame or data.preprocess.image_size
        progress.log(f"package: a form that takes camera frames of {size[0]}x{size[1]}")
        source, stem = _fold_preprocessing(variant, runtime, data.preprocess, size, folder), CAMERA_FRAMES_FORM
        comparison.use_frames(size, folder / GOLDEN_FRAMES_FILE)
        yield comparison.describe_form(CAMERA_FRAMES_FORM, ConvertedModel(files=source.files, deterministic=True))
    converted = ConvertedModel(files=source.files, deterministic=True)
    for form in [name for name in spec.forms if name != C_ARRAY_FORM]:
        progress.log(f"package: {form}")
        converted = runtime.pack(
            source.path, folder / stem, threads=target.threads, precision=variant.precision,
            native=machine.integer_isa() == target.isa,
        )  # fmt: skip
        yield comparison.describe_form(form, converted)
    if C_ARRAY_FORM in spec.forms:  # of the last form made, which a static build would link
        progress.log(f"package: {converted.files[0].name} as a C array")
        written = c_array.write(converted.files[0], folder)
        array = ConvertedModel(files=written, deterministic=converted.deterministic, bound_to=converted.bound_to)
        yield comparison.describe_form(C_ARRAY_FORM, array, opened=converted.files[0])


def _fold_preprocessing(
    variant: Variant, runtime: Any, preprocess: Preprocessing, size: tuple[int, int], folder: Path
) -> Artefact:
    """Return the model with resizing and normalisation inside the graph, compiled and under its final file name."""
    camera_input.fold_preprocessing(variant.onnx_path, preprocess, size, folder / "folded" / "folded.onnx")
    compiled = runtime.compile(folder / "folded" / "folded.onnx", folder / "folded")
    return files.make_artefact(
        *(file.replace(folder / f"{CAMERA_FRAMES_FORM}{file.suffix}") for file in compiled.files)
    )


class _FormComparison:
    """Runs forms on the same test images as the canonical model and compares their logits."""

    def __init__(self, variant: Variant, predictions: Predictions, target: Target, data: Dataset) -> None:
        test = data.splits["test"]
        self.chosen = np.linspace(0, len(test) - 1, min(COMPARED_IMAGES, len(test))).astype(int)
        self.variant, self.target, self.data = variant, target, data
        self.step, self.expected = (
            quantization_step(predictions, variant.output_step),
            predictions.artefact[self.chosen],
        )
        self.inputs = run.normalise(test.pixels.numpy()[self.chosen], data.preprocess.mean, data.preprocess.std)
        self.input_spec: TensorSpec | None = None  # None: the canonical model's input

    def use_frames(self, size: tuple[int, int], golden: Path) -> None:
        """Compare on camera frames from now on, and write some of them, with their logits, for the self-test.

        Args:
            size: height and width of the frames.
            golden: file to write.
        """
        preprocess, images = self.data.preprocess, [self.data.splits["test"].files[i] for i in self.chosen]
        frames = np.stack([run.fit_size(run.read_image(image, preprocess.mode), size) for image in images])
        runtime = load_runtime(self.target.runtime)
        session = runtime.open(self.variant.artefact.path, threads=1, precision=self.variant.precision)
        resized = [served_pixels.fit(frame, preprocess) for frame in frames]
        self.expected = np.concatenate(
            [session.run(run.normalise(pixels, preprocess.mean, preprocess.std)[None]) for pixels in resized]
        )
        self.inputs = frames.reshape(*frames.shape[:3], -1)
        self.input_spec = TensorSpec(
            name=camera_input.INPUT_NAME, dtype="uint8", layout="NHWC", shape=(1, *self.inputs.shape[1:])
        )
        kept = slice(0, None, max(1, len(frames) // GOLDEN_FRAMES))
        with files.open_atomic(golden) as out:
            npz.save(out, {"frames": self.inputs[kept], "logits": self.expected[kept]})

    def describe_form(self, name: str, converted: ConvertedModel, opened: Path | None = None) -> PackagedForm:
        """Compare a form with the canonical model and return its entry for the manifest.

        Args:
            name: of the form.
            converted: its files.
            opened: file to run in its place, for a form that the runtime cannot open, such as a C array.

        Raises:
            ToolchainError: too many of its predictions differ from the canonical model's.
        """
        runtime = load_runtime(self.target.runtime)
        path = opened or converted.files[0]
        session = runtime.open(path, threads=self.target.threads, precision=self.variant.precision)
        logits = np.concatenate([session.run(image[None]) for image in self.inputs])
        agreement = float((logits.argmax(1) == self.expected.argmax(1)).mean())
        if not np.isfinite(logits).all() or agreement < MIN_AGREEMENT:
            raise ToolchainError(
                f"{path.name}, the form {name!r}, predicts the canonical model's class for only {agreement:.0%} of "
                f"{len(logits)} test images; at least {MIN_AGREEMENT:.0%} and finite logits are required; leave it out of "
                "[package] forms, and report this"
            )
        return PackagedForm(
            form=name, files=tuple(file.name for file in converted.files), deterministic=converted.deterministic,
            sha256={file.name: files.sha256_file(file) for file in converted.files}, bound_to=converted.bound_to,
            input=self.input_spec, images=len(logits), top1_agreement=agreement,
            max_steps=round(float(np.abs(logits - self.expected).max() / self.step), 3),
        )  # fmt: skip
