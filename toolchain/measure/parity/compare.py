"""parity: a finished run -> where torch and every runtime part ways, layer by layer, in quantization steps.

All sides start from the exported Q/DQ graph. Torch's is evaluated node by node in float32 (`reference`); each
runtime compiles the graph as it would for a target. What the device answers is judged by `verify` on all images;
this says in which layer an answer goes astray, and which layers a runtime does not have in integers.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from toolchain.core import files, progress, run_report
from toolchain.core.errors import ToolchainError, first_line
from toolchain.edge import run as runner
from toolchain.export import quantized_tensors
from toolchain.export.export_variants import ONNX_FILE
from toolchain.export.quantized_tensors import QdqGraph, QuantizedTensor
from toolchain.measure import machine
from toolchain.measure.accuracy import LOGITS_FILE, RANGE_STEPS
from toolchain.measure.parity import reference, runtime_outputs
from toolchain.measure.parity.runtime_outputs import RuntimeConfig, RuntimeOutputs

SCHEMA = 1
FILE_NAME = "parity.json"
DEFAULT_IMAGES = 8
MIN_DIFFERING_SHARE = (
    0.05  # share of a layer's values: then it is the arithmetic that differs, not single values that lie on an edge
)
MIN_VALUES_FOR_SHARE = 1000  # values of a layer over all images, from which on that share is no accident
THRESHOLD_STEPS = 1.5  # rounding the other way is one step; two in a row are more than that


@dataclass(frozen=True, kw_only=True)
class GoldenSet:
    """The bundle's golden inputs, and what the shipped artefact answered."""

    images: np.ndarray  # float32 [images, 3, height, width]
    indices: np.ndarray  # which of the goldens
    logits: np.ndarray  # [all goldens, classes]


def compare_runtimes(folder: Path, images: int = DEFAULT_IMAGES, threshold: float = THRESHOLD_STEPS) -> dict[str, Any]:
    """Compares every int8 variant of a finished run and writes `parity.json` into its folder.

    Args:
        folder: result folder of an export, `out/<recipe>/<target>`.
        images: how many of the bundle's golden inputs to run.
        threshold: steps; more than that in one value is where two sides part ways.

    Returns:
        what was written; `agree` says whether all sides name the same class for every image.

    Raises:
        ToolchainError: no such run, nothing shipped or no int8 variant in it, or the cached stages are gone.
    """
    report = _report(folder)
    chosen = _int8(report, folder)
    graphs = [_graph(one, folder) for one in chosen]
    goldens = _goldens(folder, images)
    variants = list[dict[str, Any]]()
    for one, path in zip(chosen, graphs, strict=True):
        found = compare_layers(onnx.load(path), goldens.images, threshold, label=f"parity {one['name']}")
        trained = _trained(folder, goldens) if one["shipped"] else None
        stored = None if trained is None else _answers(found.reference_logits, trained, found.logit_step)
        variants.append({"name": one["name"], "shipped": one["shipped"], "trained": stored, **found.results})
    written: dict[str, Any] = {
        "schema": SCHEMA, "recipe": report["recipe"], "target": report["target"], "machine": machine.describe(),
        "images": len(goldens.images), "threshold_steps": threshold, "variants": variants,
        "agree": all(one["top1_agreement"] == 1 for v in variants for one in v["logits"].values()),
    }  # fmt: skip
    files.write_json(folder / FILE_NAME, written)
    return written


# --- what a run left behind ---------------------------------------------------------------------------------


def _report(folder: Path) -> Mapping[str, Any]:
    if not folder.is_dir():
        raise ToolchainError(f"there is no folder {folder}; give the result folder of an export, like out/digits/cpu")
    if not (folder / "report.json").is_file():
        raise ToolchainError(f"{folder} has no report.json; give the result folder of an export, like out/digits/cpu")
    report: Mapping[str, Any] = files.read_json(folder / "report.json")
    return report


def _int8(report: Mapping[str, Any], folder: Path) -> list[Mapping[str, Any]]:
    """The int8 variants, first the one that the run was about."""
    found = [one for one in report.get("variants") or () if one["precision"] == "int8"]
    if not found:
        raise ToolchainError(f"the run in {folder} has no int8 variant, so there are no quantization steps to compare")
    if not report.get("shipped") or not (folder / "bundle").is_dir():
        raise ToolchainError(
            f"the run in {folder} shipped nothing ({run_report.describe_outcome(report)}), so it has no bundle with golden "
            "inputs; export again with a budget that it meets"
        )
    return sorted(found, key=lambda one: one["name"] != run_report.reported_variant(report).get("name"))


def _graph(variant: Mapping[str, Any], folder: Path) -> Path:
    again = "run the same export again: finished stages are not repeated"
    if not variant.get("export"):
        raise ToolchainError(
            f"the report in {folder} is of an older version and does not say what it exported; {again}"
        )
    path: Path = folder.absolute().parent.parent / "work" / "export" / str(variant["export"]) / ONNX_FILE
    if not path.is_file():
        raise ToolchainError(f"the cached export of {variant['name']} is gone ({path} is not there); {again}")
    return path


def _goldens(folder: Path, count: int) -> GoldenSet:
    """Golden inputs, spread over all of them.

    Raises:
        ToolchainError: more are wanted than there are, or the bundle is damaged.
    """
    bundle = folder / "bundle"
    preprocess = files.read_json(bundle / "manifest.json")["preprocess"]
    try:
        with np.load(bundle / "golden.npz", allow_pickle=False) as kept:
            pixels, logits = kept["pixels"], kept["logits"]
    except (OSError, ValueError, KeyError) as reason:
        raise ToolchainError(f"cannot read {bundle / 'golden.npz'}: {first_line(reason)}; export again") from reason
    if not 1 <= count <= len(pixels):
        raise ToolchainError(
            f"images = {count}: the bundle has {len(pixels)} golden inputs, so 1 to {len(pixels)} can be"
        )
    rows = np.linspace(0, len(pixels) - 1, count).astype(int)
    return GoldenSet(
        images=runner.normalise(pixels[rows], preprocess["mean"], preprocess["std"]), indices=rows, logits=logits
    )


def _trained(folder: Path, goldens: GoldenSet) -> np.ndarray | None:
    """Logits that the trained torch model gave for the goldens in `verify`, found by the artefact's beside them."""
    for file in sorted((folder.absolute().parent.parent / "work" / "verify").glob(f"*/{LOGITS_FILE}")):
        with np.load(file, allow_pickle=False) as kept:
            artefact, trained = kept["artefact"], kept["torch"]
        rows = np.linspace(0, len(artefact) - 1, len(goldens.logits)).astype(int)
        if np.array_equal(artefact[rows], goldens.logits):
            found: np.ndarray = trained[rows][goldens.indices]
            return found
    return None


# --- comparison ---------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class LayerComparison:
    """One graph on every side."""

    reference_logits: np.ndarray  # logits [images, classes], with torch's arithmetic
    logit_step: float  # of the logits
    results: Mapping[str, Any]  # plain data for parity.json


def compare_layers(
    model: onnx.ModelProto, images: np.ndarray, threshold: float, *, label: str = "parity"
) -> LayerComparison:
    """Runs images through one Q/DQ graph with torch's arithmetic and in every runtime.

    Args:
        model: exported graph, static batch 1, layers named by their modules.
        images: float32 [images, 3, height, width].
        threshold: steps.

    Raises:
        ToolchainError: no runtime is installed that takes the graph.
    """
    graph = quantized_tensors.index_graph(model)
    found = quantized_tensors.find(graph)
    logits = model.graph.output[0].name
    truth = reference.evaluate(quantized_tensors.add_outputs(model, found), images)
    step = quantized_tensors.output_step(graph) or float(np.ptp(truth[logits])) / RANGE_STEPS or 1.0
    read, missing = _read(graph, found, images, step, label)
    figures = {
        "coverage": {side.runtime: _coverage(graph, one) for side, one in read.items() if side.optimized},
        "layers": [_layer(tap, truth, read) for tap in found],
        "logits": {side.name: _answers(one.logits, truth[logits], step) for side, one in read.items()},
        "parts": {side.name: _first(found, truth, one, steps=threshold) for side, one in read.items()},
        "spreads": {side.name: _first(found, truth, one, share=MIN_DIFFERING_SHARE) for side, one in read.items()},
        "fused": {side.name: list(one.fused_layers) for side, one in read.items()},
        "missing": missing,
        "sides": [side.name for side in runtime_outputs.list_configs()],
    }
    return LayerComparison(reference_logits=truth[logits], logit_step=step, results=figures)


def _read(
    graph: QdqGraph, found: Sequence[QuantizedTensor], images: np.ndarray, step: float, label: str
) -> tuple[dict[RuntimeConfig, RuntimeOutputs], dict[str, str]]:
    """What each side computed, and why the others could not."""
    read, missing = dict[RuntimeConfig, RuntimeOutputs](), dict[str, str]()
    every = runtime_outputs.list_configs()
    with progress.show_bar(label, len(every)) as bar:
        for side in every:
            try:
                read[side] = runtime_outputs.collect(side, graph, found, images, step)
            except ToolchainError as reason:
                missing[side.name] = str(reason)
            bar.step()
    if not read:
        raise ToolchainError("nothing to compare with: " + "; ".join(dict.fromkeys(missing.values())))
    return read, missing


def _coverage(graph: QdqGraph, reading: RuntimeOutputs) -> dict[str, Any]:
    """Integer kernels of one runtime; layers in float are told apart by whether they were to be."""
    planned, in_float = quantized_tensors.split_layers_by_precision(graph)
    found = reading.coverage
    return {
        "integer": found.integer,
        "planned": len(planned),
        "total": found.total,
        "fell_back": [name for name in found.float_ops if name not in in_float],
        "meant_as_float": [name for name in found.float_ops if name in in_float],
    }


def _layer(
    tap: QuantizedTensor, truth: Mapping[str, np.ndarray], read: Mapping[RuntimeConfig, RuntimeOutputs]
) -> dict[str, Any]:
    steps = {side.name: runtime_outputs.compare_tensor(tap, truth, reading) for side, reading in read.items()}
    return {"layer": tap.layer, "step": tap.step, "sides": steps}


def _answers(given: np.ndarray, wanted: np.ndarray, step: float) -> dict[str, float]:
    return {
        "max_steps": float(np.abs(given - wanted).max() / step),
        "top1_agreement": float((given.argmax(1) == wanted.argmax(1)).mean()),
    }


def _first(
    found: Sequence[QuantizedTensor],
    truth: Mapping[str, np.ndarray],
    reading: RuntimeOutputs,
    *,
    steps: float = np.inf,
    share: float = 1.0,
) -> dict[str, Any] | None:
    """The first layer that differs by more steps, or in a larger share of its values; None: there is none."""
    for tap in found:
        there = runtime_outputs.compare_tensor(tap, truth, reading)
        if there is not None and (
            there["max_steps"] > steps or (there["differing"] > share and there["values"] >= MIN_VALUES_FOR_SHARE)
        ):
            return {"layer": tap.layer, **there}
    return None
