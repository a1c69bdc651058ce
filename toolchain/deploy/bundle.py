"""bundle: all of it -> a directory and an archive to flash: hashed, self-testing, the same bytes when built again.

Nothing in here depends on the day, the folder or the user; what does (latencies, dates) stays outside, in
`measurements.json`. The directory takes its final name only when it is complete.
"""

import json
import math
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from toolchain.config.job import Job
from toolchain.core import files as records
from toolchain.core.types import Artefact, Preprocessing
from toolchain.data.decoded_dataset import Dataset
from toolchain.data.splits import Split
from toolchain.deploy import drift_reference, npz, packaged_forms, sbom, signing
from toolchain.deploy.packaged_forms import PackagedForms
from toolchain.edge import archive as archives
from toolchain.edge import manifest as manifests
from toolchain.edge import run as runner
from toolchain.edge import watch
from toolchain.export.export_variants import Variant
from toolchain.export.runtime import load_runtime
from toolchain.measure.accuracy import Predictions, quantization_step
from toolchain.pruning.surgery import Surgery
from toolchain.search import lock

GOLDEN_IMAGES = 16
MIN_TOLERANCE_STEPS = 2.0  # other kernels of the same runtime round the other way


@dataclass(frozen=True, kw_only=True)
class Shipment:
    """What a bundle is made of."""

    variant: Variant
    predictions: Mapping[Split, Predictions]  # its logits on test, the golden outputs among them, and on validation
    data: Dataset  # at the size that the variant takes its images
    surgery: Surgery  # that made the architecture
    facts: Mapping[str, Any]  # runtime, accuracy, coverage, provenance: plain data for the manifest


def run(job: Job, shipment: Shipment | None) -> None:
    """Write `bundle/` and `bundle.tar` into the job's folder, and into its lock which form ships.

    Where nothing ships an older bundle is removed: it must not look like the result of this run.

    Raises:
        ToolchainError: a further form cannot be made, or the disk is full.
    """
    if shipment is None:
        remove(job.folder)
        return
    forms = packaged_forms.make_forms(job, shipment.variant, shipment.predictions["test"], shipment.data)
    write(shipment, forms, job.folder)
    lock.record_shipped_precision(job.folder / lock.file_name(job.recipe, job.target), shipment.variant.precision)


def write(shipment: Shipment, forms: PackagedForms, out: Path) -> Path:
    """Write `out/bundle/` and `out/bundle.tar`.

    Args:
        forms: further forms of the model, which go into the bundle too.

    Returns:
        the archive.
    """
    variant, data, predictions = shipment.variant, shipment.data, shipment.predictions
    final, making = out / "bundle", out / ".bundle.tmp"
    old = out / ".bundle.old.tmp"
    for left in (making, old):
        shutil.rmtree(left, ignore_errors=True)
    try:
        making.mkdir(parents=True)
        _copy_model(variant.artefact, making)
        golden = _goldens(variant, predictions["test"], data, making / "golden.npz")
        _reference(predictions, data, making / watch.REFERENCE_FILE)
        for file in forms.files:
            shutil.copyfile(file, making / file.name)
        facts = {**shipment.facts, "forms": records.to_jsonable(forms.forms)}
        manifest = _manifest(variant, facts, data, golden)
        records.write_json(making / "manifest.json", manifest)
        records.write_json(making / sbom.FILE_NAME, sbom.build(manifests.parse(records.to_jsonable(manifest), making)))
        records.write_text(
            making / "surgery.json", json.dumps(records.to_jsonable(shipment.surgery), sort_keys=True) + "\n"
        )
        records.write_text(making / "labels.txt", "\n".join(data.classes) + "\n")
        records.write_text(making / "LICENCES.md", _licences(facts))
        shutil.copyfile(runner.__file__, making / "run.py")
        shutil.copyfile(watch.__file__, making / "watch.py")
        archives.write_checksums(making)
        archive = _packed(making, out / "bundle.tar")
        if final.exists():
            final.replace(old)  # never half gone under its own name
        making.replace(final)
        shutil.rmtree(old, ignore_errors=True)
        return archive
    except OSError as reason:
        raise records.disk_error(making, reason) from reason


def remove(out: Path) -> None:
    """Takes away an older bundle, so that a missed budget does not leave one that looks current."""
    shutil.rmtree(out / "bundle", ignore_errors=True)
    (out / "bundle.tar").unlink(missing_ok=True)
    signing.signature_path(out / "bundle.tar").unlink(missing_ok=True)


def _packed(folder: Path, archive: Path) -> Path:
    """Writes the archive. A signature stays only over the same bytes: over others it would look like one over these."""
    signature = signing.signature_path(archive)
    before = records.sha256_file(archive) if archive.is_file() else ""
    kept = signature.read_bytes() if signature.is_file() else b""
    signature.unlink(missing_ok=True)
    if archives.pack(folder, archive) and kept and records.sha256_file(archive) == before:
        with records.open_atomic(signature) as out:
            out.write(kept)
    return archive


def _copy_model(artefact: Artefact, folder: Path) -> None:
    for file in artefact.files:
        shutil.copyfile(file, folder / _shipped_name(file))


def _shipped_name(file: Path) -> str:
    return f"model{file.suffix}"


def _goldens(variant: Variant, answers: Predictions, data: Dataset, path: Path) -> dict[str, float]:
    """Test pictures whose answers the device must give again, spread over the classes."""
    test = data.splits["test"]
    chosen = np.linspace(0, len(test) - 1, min(GOLDEN_IMAGES, len(test))).astype(int)
    golden = {
        "pixels": test.pixels.numpy()[chosen],
        "logits": answers.artefact[chosen],
        "labels": test.labels.numpy()[chosen],
    }
    with records.open_atomic(path) as out:
        npz.save(out, golden)
    step = quantization_step(variant, answers)
    spread = 0.0
    if answers.unoptimized is not None:
        spread = float(np.abs(answers.artefact[chosen] - answers.unoptimized[chosen]).max() / step)
    return {"step": step, "tolerance_steps": max(MIN_TOLERANCE_STEPS, math.ceil(2 * spread))}


def _reference(answers: Mapping[Split, Predictions], data: Dataset, path: Path) -> None:
    """Readings of the pictures that the model was tested on, for `run.py --watch` and `toolchain drift`."""
    seen = [
        drift_reference.SplitPredictions(pixels=split.pixels.numpy(), logits=own.artefact, labels=split.labels.numpy())
        for split, own in ((data.splits[name], answers[name]) for name in sorted(answers))
    ]
    with records.open_atomic(path) as out:
        npz.save(out, drift_reference.build_arrays(seen))


def _manifest(variant: Variant, facts: Mapping[str, Any], data: Dataset, golden: Mapping[str, float]) -> dict[str, Any]:
    preprocess: Preprocessing = data.preprocess
    files = variant.artefact.files
    return {
        "schema": manifests.SCHEMA,
        "precision": variant.precision,
        "precision_hint": "bf16" if variant.precision == "bf16" else "f32",
        "model": {
            "files": [_shipped_name(file) for file in files],
            "sha256": {_shipped_name(file): records.sha256_file(file) for file in files},
            "size_bytes": variant.artefact.size_bytes,
            "macs": variant.macs,
            "parameters": variant.parameters,
        },
        "input": {"name": "input", "dtype": "float32", "layout": "NCHW", "shape": [1, 3, *preprocess.image_size]},
        "output": {"name": "logits", "dtype": "float32", "shape": [1, len(data.classes)]},
        "preprocess": {
            **records.to_jsonable(preprocess),
            "resize": "stretch, bilinear with antialiasing",
            "scale": "pixels / 255",
        },
        "classes": list(data.classes),
        "runtime_least": load_runtime(facts["runtime"]).least_version(variant.artefact.path),
        "watch": watch.REFERENCE_FILE,
        "golden": {"file": "golden.npz", **golden},
        **facts,
    }


def _licences(facts: Mapping[str, Any]) -> str:
    made_of = facts["provenance"]
    unknown = "not stated; find out before you ship this"
    return (
        "# Licences\n\n"
        f"- Pretrained weights ({made_of['weights'] or 'none'}): {made_of['weights_licence'] or unknown}\n"
        f"- Pictures that the model was tuned on: {made_of['data_licence'] or unknown}\n"
        "- run.py, watch.py: as the toolchain it comes from\n"
    )
