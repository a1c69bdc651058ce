"""Compare torch with every runtime on the graphs of a finished run: layer by layer, in quantization steps.

All start from the exported Q/DQ graph. `reference` evaluates it node by node in float32 with torch's arithmetic; each
runtime compiles it as it would for a target. `verify` judges the predictions on the target, on all images; parity tells
in which layer a prediction starts to deviate, and which layers a runtime does not run in int8.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from toolchain.core import files, progress
from toolchain.core.errors import ToolchainError
from toolchain.export import quantized_tensors
from toolchain.export.quantized_tensors import QdqGraph, QuantizedTensor
from toolchain.measure import machine
from toolchain.measure.parity import finished_run, reference, runtime_outputs
from toolchain.measure.parity.runtime_outputs import RuntimeConfig, RuntimeOutputs
from toolchain.measure.torch_parity import RANGE_STEPS

SCHEMA = 1
FILE_NAME = "parity.json"
DEFAULT_IMAGES = 8
# share of a layer's values: where more differ, the arithmetic differs, not only single values on the edge of rounding
MIN_DIFFERING_SHARE = 0.05
MIN_VALUES_FOR_SHARE = 1000  # values of a layer over all images; with fewer, a large share may be chance
THRESHOLD_STEPS = 1.5  # a value rounded to the neighbouring step differs by one; two steps are more than that


@dataclass(frozen=True, kw_only=True)
class LayerComparison:
    """One graph in torch's arithmetic and in every runtime."""

    reference_logits: np.ndarray  # [images, classes], with torch's arithmetic
    logit_step: float  # quantization step of the logits
    results: Mapping[str, Any]  # plain data for parity.json


def compare_runtimes(folder: Path, images: int = DEFAULT_IMAGES, threshold: float = THRESHOLD_STEPS) -> dict[str, Any]:
    """Compare every int8 variant of a finished run, and write `parity.json` into its folder.

    Args:
        folder: result folder of an export, `out/<recipe>/<target>`.
        images: number of the bundle's golden inputs to run.
        threshold: steps; a runtime deviates in a layer where one value differs by more.

    Returns:
        the content of the file; `agree` is true where all runtimes predict the same class as torch for every image.

    Raises:
        ToolchainError: there is no such run, it shipped nothing or has no int8 variant, or its cached stages are gone.
    """
    report = finished_run.read_report(folder)
    int8_variants = finished_run.list_int8_variants(report, folder)
    graphs = [finished_run.find_graph(variant, folder) for variant in int8_variants]
    goldens = finished_run.load_golden_inputs(folder, images)
    rows = list[dict[str, Any]]()
    for variant, path in zip(int8_variants, graphs, strict=True):
        comparison = compare_layers(onnx.load(path), goldens.images, threshold, label=f"parity {variant['name']}")
        trained = finished_run.load_trained_logits(folder, goldens) if variant["shipped"] else None
        agreement = (
            None if trained is None else _compare_logits(comparison.reference_logits, trained, comparison.logit_step)
        )
        rows.append({
            "name": variant["name"], "shipped": variant["shipped"], "trained": agreement, **comparison.results
        })  # fmt: skip
    result: dict[str, Any] = {
        "schema": SCHEMA, "recipe": report["recipe"], "target": report["target"], "machine": machine.describe(),
        "images": len(goldens.images), "threshold_steps": threshold, "variants": rows,
        "agree": all(logits["top1_agreement"] == 1 for row in rows for logits in row["logits"].values()),
    }  # fmt: skip
    files.write_json(folder / FILE_NAME, result)
    return result


def compare_layers(
    model: onnx.ModelProto, images: np.ndarray, threshold: float, *, label: str = "parity"
) -> LayerComparison:
    """Run images through one Q/DQ graph with torch's arithmetic and in every runtime.

    Args:
        model: exported graph, static batch 1, with layers named by their modules.
        images: float32 [images, 3, height, width].
        threshold: steps; a runtime deviates in a layer where one value differs by more.
        label: of the progress bar.

    Raises:
        ToolchainError: no installed runtime runs the graph.
    """
    graph = quantized_tensors.index_graph(model)
    tensors = quantized_tensors.find(graph)
    logits = model.graph.output[0].name
    expected = reference.evaluate(quantized_tensors.add_outputs(model, tensors), images)
    step = quantized_tensors.output_step(graph) or float(np.ptp(expected[logits])) / RANGE_STEPS or 1.0
    outputs, missing = _run_all(graph, tensors, images, step, label)
    by_name = {config.name: config_outputs for config, config_outputs in outputs.items()}
    results = {
        "coverage": {
            config.runtime: _summarise_coverage(graph, outputs[config]) for config in outputs if config.optimized
        },
        "layers": [_compare_layer(tensor, expected, by_name) for tensor in tensors],
        "logits": {name: _compare_logits(given.logits, expected[logits], step) for name, given in by_name.items()},
        "parts": {
            name: _find_first_deviation(tensors, expected, given, steps=threshold) for name, given in by_name.items()
        },
        "spreads": {
            name: _find_first_deviation(tensors, expected, given, share=MIN_DIFFERING_SHARE)
            for name, given in by_name.items()
        },
        "fused": {name: list(given.fused_layers) for name, given in by_name.items()},
        "missing": missing,
        "sides": [config.name for config in runtime_outputs.list_configs()],
    }
    return LayerComparison(reference_logits=expected[logits], logit_step=step, results=results)


def _run_all(
    graph: QdqGraph, tensors: Sequence[QuantizedTensor], images: np.ndarray, step: float, label: str
) -> tuple[dict[RuntimeConfig, RuntimeOutputs], dict[str, str]]:
    """Return the outputs of each runtime, and by name why a runtime gave none.

    Raises:
        ToolchainError: no runtime gave any.
    """
    outputs, missing = dict[RuntimeConfig, RuntimeOutputs](), dict[str, str]()
    configs = runtime_outputs.list_configs()
    with progress.show_bar(label, len(configs)) as bar:
        for config in configs:
            try:
                outputs[config] = runtime_outputs.collect(config, graph, tensors, images, step)
            except ToolchainError as reason:
                missing[config.name] = str(reason)
            bar.step()
    if not outputs:
        raise ToolchainError("no runtime can run the graph: " + "; ".join(dict.fromkeys(missing.values())))
    return outputs, missing


def _summarise_coverage(graph: QdqGraph, outputs: RuntimeOutputs) -> dict[str, Any]:
    """Return the number of int8 kernels of a runtime, and its float layers: those that fell back, and those planned."""
    planned, planned_float = quantized_tensors.split_layers_by_precision(graph)
    coverage = outputs.coverage
    return {
        "integer": coverage.integer,
        "planned": len(planned),
        "total": coverage.total,
        "fell_back": [name for name in coverage.float_ops if name not in planned_float],
        "meant_as_float": [name for name in coverage.float_ops if name in planned_float],
    }


def _compare_layer(
    tensor: QuantizedTensor, expected: Mapping[str, np.ndarray], outputs: Mapping[str, RuntimeOutputs]
) -> dict[str, Any]:
    differences = {name: runtime_outputs.compare_tensor(tensor, expected, given) for name, given in outputs.items()}
    return {"layer": tensor.layer, "step": tensor.step, "sides": differences}


def _compare_logits(logits: np.ndarray, expected: np.ndarray, step: float) -> dict[str, float]:
    return {
        "max_steps": float(np.abs(logits - expected).max() / step),
        "top1_agreement": float((logits.argmax(1) == expected.argmax(1)).mean()),
    }


def _find_first_deviation(
    tensors: Sequence[QuantizedTensor],
    expected: Mapping[str, np.ndarray],
    outputs: RuntimeOutputs,
    *,
    steps: float = np.inf,
    share: float = 1.0,
) -> dict[str, Any] | None:
    """Return the first layer that differs by more steps, or in a larger share of its values; None: no layer does."""
    for tensor in tensors:
        difference = runtime_outputs.compare_tensor(tensor, expected, outputs)
        if difference is not None and (
            difference["max_steps"] > steps
            or (difference["differing"] > share and difference["values"] >= MIN_VALUES_FOR_SHARE)
        ):
            return {"layer": tensor.layer, **difference}
    return None
