"""package: what ships -> the same in the further forms that a target asks for, each asked the same pictures.

The canonical model is what was verified and timed, so a form counts only beside it: how far its answers are from the
canonical ones, on test pictures, goes into the manifest.
"""

import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from toolchain.config import toml_files
from toolchain.config.job import Job
from toolchain.config.packaging import C_ARRAY_FORM, CAMERA_FRAMES_FORM, ConvertedModel
from toolchain.config.target import Target
from toolchain.core import files as records
from toolchain.core import progress, stage_cache
from toolchain.core.errors import ToolchainError
from toolchain.core.types import Artefact, Preprocessing
from toolchain.data.decoded_dataset import Dataset
from toolchain.deploy import c_array, cpp_runner, npz
from toolchain.edge import run as runner
from toolchain.edge.manifest import PackagedForm, TensorSpec
from toolchain.export.export_variants import Variant
from toolchain.export.passes import camera_input
from toolchain.export.runtime import load_runtime
from toolchain.measure import machine
from toolchain.measure.accuracy import Predictions, quantization_step

VERSION = 1
COMPARED_IMAGES = 64  # of test, that every form is asked
GOLDEN_FRAMES = 4  # that go into the bundle
GOLDEN_FRAMES_FILE = "golden_frames.npz"
MIN_AGREEMENT = 0.95  # share of the pictures that a form must put into the canonical one's class


@dataclass(frozen=True, kw_only=True)
class PackagedForms:
    """All further forms, and the files that they consist of."""

    forms: tuple[PackagedForm, ...] = ()
    files: tuple[Path, ...] = ()  # and whatever else was asked for


def make_forms(job: Job, variant: Variant, answers: Predictions, data: Dataset) -> PackagedForms:
    """Makes the forms that the target asks for.

    Args:
        answers: the canonical model's logits on test.

    Raises:
        ToolchainError: a form cannot be made, or answers otherwise than the canonical model.
    """
    target = job.target
    if not target.package.is_requested:
        return PackagedForms()
    key = records.digest(
        VERSION, variant.artefact.sha256, variant.precision, records.to_jsonable(target.package), data.preprocess, data.digest,
        load_runtime(target.runtime).fingerprint(), machine.isa(), target.threads, target.isa,
        cpp_runner.hash_sources() if target.package.sources else "",
    )  # fmt: skip
    with stage_cache.open_stage(job.work, "package", key) as stage:
        if stage.record is None:
            started = time.monotonic()
            forms = list(_made(variant, answers, target, data, stage.folder))
            if target.package.sources:
                cpp_runner.pack(stage.folder / cpp_runner.ARCHIVE_NAME)
            stage = stage_cache.finish(stage, started, {"forms": forms})
        found = (
            tuple(toml_files.to_dataclass(PackagedForm, one, str(stage.folder)) for one in stage.record["forms"])
            if stage.record
            else ()
        )
        files = [stage.folder / name for form in found for name in form.files]
        golden = [stage.folder / GOLDEN_FRAMES_FILE] if target.package.input == "uint8" else []
        sources = [stage.folder / cpp_runner.ARCHIVE_NAME] if target.package.sources else []
        return PackagedForms(forms=found, files=(*files, *golden, *sources))


def _made(
    variant: Variant, answers: Predictions, target: Target, data: Dataset, folder: Path
) -> Iterator[PackagedForm]:
    """One form after the other, written to `folder` under the names that they ship by."""
    asked, runtime = target.package, load_runtime(target.runtime)
    judge = _Judge(variant, answers, target, data)
    source, stem = variant.artefact, "model"
    if asked.input == "uint8":
        size = asked.frame or data.preprocess.image_size
        progress.log(f"package: a form that takes frames of {size[0]}x{size[1]}")
        source, stem = _framed(variant, runtime, data.preprocess, size, folder), CAMERA_FRAMES_FORM
        judge.look(size, folder / GOLDEN_FRAMES_FILE)
        yield judge.form(CAMERA_FRAMES_FORM, ConvertedModel(files=source.files, deterministic=True))
    packed = ConvertedModel(files=source.files, deterministic=True)
    for form in [name for name in asked.forms if name != C_ARRAY_FORM]:
        progress.log(f"package: {form}")
        packed = runtime.pack(
            source.path, folder / stem, threads=target.threads, precision=variant.precision,
            native=machine.integer_isa() == target.isa,
        )  # fmt: skip
        yield judge.form(form, packed)
    if C_ARRAY_FORM in asked.forms:  # of the last form made: what a static build would link
        progress.log(f"package: {packed.files[0].name} as a C array")
        written = c_array.write(packed.files[0], folder)
        alike = ConvertedModel(files=written, deterministic=packed.deterministic, bound_to=packed.bound_to)
        yield judge.form(C_ARRAY_FORM, alike, opened=packed.files[0])


def _framed(variant: Variant, runtime: Any, preprocess: Preprocessing, size: tuple[int, int], folder: Path) -> Artefact:
    """The model with resizing and normalising inside, under its own name."""
    camera_input.fold_preprocessing(variant.onnx_path, preprocess, size, folder / "folded" / "folded.onnx")
    made = runtime.compile(folder / "folded" / "folded.onnx", folder / "folded")
    return records.make_artefact(*(file.replace(folder / f"{CAMERA_FRAMES_FORM}{file.suffix}") for file in made.files))


class _Judge:
    """Asks forms the same pictures as the canonical model."""

    def __init__(self, variant: Variant, answers: Predictions, target: Target, data: Dataset) -> None:
        test = data.splits["test"]
        self.chosen = np.linspace(0, len(test) - 1, min(COMPARED_IMAGES, len(test))).astype(int)
        self.variant, self.target, self.data = variant, target, data
        self.step, self.wanted = quantization_step(variant, answers), answers.artefact[self.chosen]
        self.inputs = runner.normalise(test.pixels.numpy()[self.chosen], data.preprocess.mean, data.preprocess.std)
        self.tensor: TensorSpec | None = None  # the input where it is a frame

    def look(self, size: tuple[int, int], golden: Path) -> None:
        """From now on pictures come as a camera's frames would; some of them are written for the self-test."""
        sees, files = self.data.preprocess, [self.data.splits["test"].files[i] for i in self.chosen]
        shots = np.stack([runner.fit_size(runner.read_image(file, sees.mode), size) for file in files])
        room, shown = load_runtime(self.target.runtime), runner.normalise
        session = room.open(self.variant.artefact.path, threads=1, precision=self.variant.precision)
        small = [runner.fit_size(shot, sees.image_size) for shot in shots]
        self.wanted = np.concatenate([session.run(shown(one, sees.mean, sees.std)[None]) for one in small])
        self.inputs = shots.reshape(*shots.shape[:3], -1)
        self.tensor = TensorSpec(
            name=camera_input.INPUT_NAME, dtype="uint8", layout="NHWC", shape=(1, *self.inputs.shape[1:])
        )
        kept = slice(0, None, max(1, len(shots) // GOLDEN_FRAMES))
        with records.open_atomic(golden) as out:
            npz.save(out, {"frames": self.inputs[kept], "logits": self.wanted[kept]})

    def form(self, name: str, packed: ConvertedModel, opened: Path | None = None) -> PackagedForm:
        """What the manifest says of a form.

        Args:
            opened: what is asked in its place, where the form itself is none that the runtime opens.

        Raises:
            ToolchainError: it answers otherwise than the canonical model.
        """
        room = load_runtime(self.target.runtime)
        path = opened or packed.files[0]
        session = room.open(path, threads=self.target.threads, precision=self.variant.precision)
        given = np.concatenate([session.run(one[None]) for one in self.inputs])
        agreement = float((given.argmax(1) == self.wanted.argmax(1)).mean())
        if not np.isfinite(given).all() or agreement < MIN_AGREEMENT:
            raise ToolchainError(
                f"{path.name}, the form {name!r}, names the canonical model's class for {agreement:.0%} of "
                f"{len(given)} test pictures only; leave it out of [package] forms, and report this"
            )
        return PackagedForm(
            form=name, files=tuple(file.name for file in packed.files), deterministic=packed.deterministic,
            sha256={file.name: records.sha256_file(file) for file in packed.files}, bound_to=packed.bound_to,
            input=self.tensor, images=len(given), top1_agreement=agreement,
            max_steps=round(float(np.abs(given - self.wanted).max() / self.step), 3),
        )  # fmt: skip
