"""What parity reads from a finished run: its int8 variants, their exported graphs, golden inputs and the trained logits."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from toolchain.core import files, run_report
from toolchain.core.errors import ToolchainError, first_line
from toolchain.edge import run as runner
from toolchain.export.export_variants import ONNX_FILE
from toolchain.measure.accuracy import LOGITS_FILE


@dataclass(frozen=True, kw_only=True)
class GoldenSet:
    """Golden inputs of a bundle, and the logits that the shipped artefact gave for all of them."""

    images: np.ndarray  # float32 [images, 3, height, width]
    indices: np.ndarray  # of the images among all golden inputs
    logits: np.ndarray  # [all golden inputs, classes]


def read_report(folder: Path) -> Mapping[str, Any]:
    """Return the report of a run.

    Raises:
        ToolchainError: the folder does not exist, or has no report.
    """
    if not folder.is_dir():
        raise ToolchainError(f"there is no folder {folder}. Name the result folder of an export, like out/digits/cpu")
    if not (folder / "report.json").is_file():
        raise ToolchainError(f"{folder} has no report.json. Name the result folder of an export, like out/digits/cpu")
    report: Mapping[str, Any] = files.read_json(folder / "report.json")
    return report


def list_int8_variants(report: Mapping[str, Any], folder: Path) -> Sequence[Mapping[str, Any]]:
    """Return the int8 variants of a run, the one that the report is about first.

    Raises:
        ToolchainError: there is no int8 variant, or the run shipped nothing and so has no golden inputs.
    """
    variants = [variant for variant in report.get("variants") or () if variant["precision"] == "int8"]
    if not variants:
        raise ToolchainError(f"the run in {folder} has no int8 variant, so there are no quantization steps to compare")
    if not report.get("shipped") or not (folder / "bundle").is_dir():
        raise ToolchainError(
            f"the run in {folder} shipped nothing ({run_report.describe_outcome(report)}), so it has no bundle with golden "
            "inputs. Export again with a budget that the model meets"
        )
    reported = run_report.reported_variant(report).get("name")
    return sorted(variants, key=lambda variant: variant["name"] != reported)


def find_graph(variant: Mapping[str, Any], folder: Path) -> Path:
    """Return the Q/DQ graph that a variant was exported as, from the stage cache.

    Raises:
        ToolchainError: the report does not name it, or it is no longer in the cache.
    """
    advice = "Run the same export again; finished stages are not repeated"
    if not variant.get("export"):
        raise ToolchainError(
            f"the report in {folder} is of an older version and does not name the exported graph. {advice}"
        )
    path: Path = folder.absolute().parent.parent / "work" / "export" / str(variant["export"]) / ONNX_FILE
    if not path.is_file():
        raise ToolchainError(f"the cached export of {variant['name']} is gone: {path} does not exist. {advice}")
    return path


def load_golden_inputs(folder: Path, count: int) -> GoldenSet:
    """Load golden inputs, evenly spread over all that the bundle has.

    Raises:
        ToolchainError: the bundle has fewer golden inputs than `count`, or is damaged.
    """
    bundle = folder / "bundle"
    preprocess = files.read_json(bundle / "manifest.json")["preprocess"]
    try:
        with np.load(bundle / "golden.npz", allow_pickle=False) as arrays:
            pixels, logits = arrays["pixels"], arrays["logits"]
    except (OSError, ValueError, KeyError) as reason:
        raise ToolchainError(f"cannot read {bundle / 'golden.npz'}: {first_line(reason)}. Export again") from reason
    if not 1 <= count <= len(pixels):
        raise ToolchainError(
            f"cannot run {count} images: the bundle has {len(pixels)} golden inputs. Accepted: 1 to {len(pixels)}"
        )
    indices = np.linspace(0, len(pixels) - 1, count).astype(int)
    images = runner.normalise(pixels[indices], preprocess["mean"], preprocess["std"])
    return GoldenSet(images=images, indices=indices, logits=logits)


def load_trained_logits(folder: Path, goldens: GoldenSet) -> np.ndarray | None:
    """Return the logits of the trained torch model for the golden inputs, as the stage `verify` kept them.

    The stage keeps the artefact's logits beside them, by which the entry of this run's artefact is recognised.

    Returns:
        [images, classes]; None where no entry belongs to the artefact.
    """
    for file in sorted((folder.absolute().parent.parent / "work" / "verify").glob(f"*/{LOGITS_FILE}")):
        with np.load(file, allow_pickle=False) as arrays:
            artefact, trained = arrays["artefact"], arrays["torch"]
        golden_rows = np.linspace(0, len(artefact) - 1, len(goldens.logits)).astype(int)
        if np.array_equal(artefact[golden_rows], goldens.logits):
            logits: np.ndarray = trained[golden_rows][goldens.indices]
            return logits
    return None
