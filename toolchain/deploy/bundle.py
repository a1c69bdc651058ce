"""Write the bundle: a folder and an archive to flash, hashed, self-testing and byte-identical when built again.

Nothing in a bundle depends on the date, the folder or the user; latencies and dates go to `measurements.json`. The folder
gets its final name only when it is complete.
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
from toolchain.core import files
from toolchain.core.types import Artefact, Preprocessing
from toolchain.data.decoded_dataset import Dataset
from toolchain.data.splits import Split
from toolchain.deploy import drift_reference, npz, packaged_forms, sbom, signing
from toolchain.deploy.packaged_forms import PackagedForms
from toolchain.edge import archive, manifest, pixels, served_pixels, watch
from toolchain.edge import run as board_runner
from toolchain.export.export_variants import Variant
from toolchain.export.runtime import load_runtime
from toolchain.measure.torch_parity import Predictions, quantization_step
from toolchain.pruning.surgery import Surgery
from toolchain.search import lock_file

BEST = "best"  # folder of the best variant of a run in which nothing ships
GOLDEN_IMAGES = 16
MIN_TOLERANCE_STEPS = 2.0  # kernels for other processors of the same runtime may round differently


@dataclass(frozen=True, kw_only=True)
class Shipment:
    """The variant that ships, with everything else that its bundle is made from."""

    variant: Variant
    predictions: Mapping[Split, Predictions]  # on test, from which the golden outputs are taken, and on validation
    data: Dataset  # at the variant's input size
    surgery: Surgery  # that gave the variant its architecture
    facts: Mapping[str, Any]  # runtime, accuracy, coverage, provenance: JSON-like data for the manifest
    accepted: bool = True  # false: missed a budget


def run(job: Job, shipment: Shipment) -> None:
    """Write `bundle/` and `bundle.tar` to the job's folder, and record in its lock which precision ships.

    If nothing ships, write the best variant to `best/`, marked as not accepted, and remove an older bundle, which would
    look like the result of this run.

    Raises:
        ToolchainError: a further form cannot be made, or the disk is full.
    """
    if not shipment.accepted:
        remove(job.folder)
        _replace_folder(shipment, PackagedForms(), job.folder / BEST)
        return
    shutil.rmtree(job.folder / BEST, ignore_errors=True)
    forms = packaged_forms.make_forms(job, shipment.variant, shipment.predictions["test"], shipment.data)
    write(shipment, forms, job.folder)
    lock_file.record_shipped_precision(
        job.folder / lock_file.file_name(job.recipe, job.target), shipment.variant.precision
    )


def write(shipment: Shipment, forms: PackagedForms, out: Path) -> Path:
    """Write `out/bundle/` and `out/bundle.tar`.

    Args:
        shipment: what to ship.
        forms: further forms of the model, which go into the bundle too.
        out: folder of the run.

    Returns:
        the archive's path.

    Raises:
        ToolchainError: the disk is full, or there is no permission.
    """
    return _replace_folder(shipment, forms, out / "bundle", archive_path=out / "bundle.tar")


def _replace_folder(shipment: Shipment, forms: PackagedForms, final: Path, *, archive_path: Path | None = None) -> Path:
    """Write a bundle's folder and, where asked for, its archive; return the path of the archive, or of the folder."""
    temporary, old = final.with_name(f".{final.name}.tmp"), final.with_name(f".{final.name}.old.tmp")
    for leftover in (temporary, old):
        shutil.rmtree(leftover, ignore_errors=True)
    try:
        temporary.mkdir(parents=True)
        _write_files(shipment, forms, temporary)
        archive.write_checksums(temporary)
        path = _pack(temporary, archive_path) if archive_path else final
        if final.exists():
            final.replace(old)  # renamed, not deleted, so that the folder is never half deleted
        temporary.replace(final)
        shutil.rmtree(old, ignore_errors=True)
        return path
    except OSError as reason:
        raise files.disk_error(temporary, reason) from reason


def _write_files(shipment: Shipment, forms: PackagedForms, folder: Path) -> None:
    """Write everything but SHA256SUMS."""
    variant, data, predictions = shipment.variant, shipment.data, shipment.predictions
    _copy_model(variant.artefact, folder)
    golden = _write_golden(variant, predictions["test"], data, folder / "golden.npz")
    _write_drift_reference(predictions, data, folder / watch.REFERENCE_FILE)
    for file in forms.files:
        shutil.copyfile(file, folder / file.name)
    facts = {**shipment.facts, "forms": files.to_jsonable(forms.forms)}
    content = _make_manifest(variant, facts, data, golden)
    if not shipment.accepted:
        content["accepted"] = False
    files.write_json(folder / "manifest.json", content)
    files.write_json(folder / sbom.FILE_NAME, sbom.build(manifest.parse(files.to_jsonable(content), folder)))
    files.write_text(folder / "surgery.json", json.dumps(files.to_jsonable(shipment.surgery), sort_keys=True) + "\n")
    files.write_text(folder / "labels.txt", "\n".join(data.classes) + "\n")
    modules = [board_runner, watch, *([] if served_pixels.is_stretched(data.preprocess) else [pixels])]
    scripts = [Path(module.__file__) for module in modules]
    for script in scripts:
        shutil.copyfile(script, folder / script.name)
    files.write_text(folder / "LICENCES.md", _list_licences(facts, [script.name for script in scripts]))


def remove(out: Path) -> None:
    """Remove an older bundle, its archive and signature, so that none looks like the result of a run that missed a budget."""
    shutil.rmtree(out / "bundle", ignore_errors=True)
    (out / "bundle.tar").unlink(missing_ok=True)
    signing.signature_path(out / "bundle.tar").unlink(missing_ok=True)


def _pack(folder: Path, path: Path) -> Path:
    """Write the archive. Keep an existing signature only if the archive has the same bytes as before."""
    signature = signing.signature_path(path)
    old_digest = files.sha256_file(path) if path.is_file() else ""
    old_signature = signature.read_bytes() if signature.is_file() else b""
    signature.unlink(missing_ok=True)
    archive.pack(folder, path)
    if old_signature and files.sha256_file(path) == old_digest:
        with files.open_atomic(signature) as out:
            out.write(old_signature)
    return path


def _copy_model(artefact: Artefact, folder: Path) -> None:
    for file in artefact.files:
        shutil.copyfile(file, folder / _shipped_name(file))


def _shipped_name(file: Path) -> str:
    return f"model{file.suffix}"


def _write_golden(variant: Variant, predictions: Predictions, data: Dataset, path: Path) -> dict[str, float]:
    """Write golden inputs, spread over the classes, with the logits that a board must reproduce.

    Returns:
        quantization step of the logits, and the tolerance in steps: twice the difference between the runtime's optimized
        and unoptimized kernels, at least MIN_TOLERANCE_STEPS.
    """
    test = data.splits["test"]
    chosen = np.linspace(0, len(test) - 1, min(GOLDEN_IMAGES, len(test))).astype(int)
    golden = {
        "pixels": test.pixels.numpy()[chosen],
        "logits": predictions.artefact[chosen],
        "labels": test.labels.numpy()[chosen],
    }
    with files.open_atomic(path) as out:
        npz.save(out, golden)
    step = quantization_step(predictions, variant.output_step)
    spread = 0.0
    if predictions.unoptimized is not None:
        spread = float(np.abs(predictions.artefact[chosen] - predictions.unoptimized[chosen]).max() / step)
    return {"step": step, "tolerance_steps": max(MIN_TOLERANCE_STEPS, math.ceil(2 * spread))}


def _write_drift_reference(predictions: Mapping[Split, Predictions], data: Dataset, path: Path) -> None:
    """Write statistics of the images that the model was tested on, for `run.py --watch` and `toolchain drift`."""
    splits = [
        drift_reference.SplitPredictions(
            pixels=data.splits[name].pixels.numpy(),
            logits=predictions[name].artefact,
            labels=data.splits[name].labels.numpy(),
        )
        for name in sorted(predictions)
    ]
    with files.open_atomic(path) as out:
        npz.save(out, drift_reference.build_arrays(splits))


def _make_manifest(
    variant: Variant, facts: Mapping[str, Any], data: Dataset, golden: Mapping[str, float]
) -> dict[str, Any]:
    preprocess: Preprocessing = data.preprocess
    model_files = variant.artefact.files
    return {
        "schema": manifest.PLAIN_SCHEMA if served_pixels.is_stretched(preprocess) else manifest.SCHEMA,
        "precision": variant.precision,
        "precision_hint": "bf16" if variant.precision == "bf16" else "f32",
        "model": {
            "files": [_shipped_name(file) for file in model_files],
            "sha256": {_shipped_name(file): files.sha256_file(file) for file in model_files},
            "size_bytes": variant.artefact.size_bytes,
            "macs": variant.macs,
            "parameters": variant.parameters,
        },
        "input": {"name": "input", "dtype": "float32", "layout": "NCHW", "shape": [1, 3, *preprocess.image_size]},
        "output": {"name": "logits", "dtype": "float32", "shape": [1, len(data.classes)]},
        "preprocess": {
            **served_pixels.describe(preprocess),
            "resize": served_pixels.describe_resizing(preprocess),
            "scale": "pixels / 255",
        },
        "classes": list(data.classes),
        "runtime_least": load_runtime(facts["runtime"]).least_version(variant.artefact.path),
        "watch": watch.REFERENCE_FILE,
        "golden": {"file": "golden.npz", **golden},
        **facts,
    }


def _list_licences(facts: Mapping[str, Any], scripts: list[str]) -> str:
    provenance = facts["provenance"]
    unknown = "not stated; find out before you ship this bundle"
    return (
        "# Licences\n\n"
        f"- Pretrained weights ({provenance['weights'] or 'none'}): {provenance['weights_licence'] or unknown}\n"
        f"- Images that the model was fine-tuned on: {provenance['data_licence'] or unknown}\n"
        f"- {', '.join(scripts)}: the licence of the toolchain\n"
    )
