"""The report as plain data: what report.json holds, an interface that CI and dashboards read."""

import statistics
from typing import Any

from toolchain.config.recipe import Recipe
from toolchain.core import files
from toolchain.core.run_report import BASELINE
from toolchain.core.statistics import percentile
from toolchain.core.types import Interval
from toolchain.export.export_variants import Variant
from toolchain.gates import budget_checks
from toolchain.measure import machine
from toolchain.measure.latency import LatencyMeasurement
from toolchain.quantization import quantize
from toolchain.quantization.placement_result import PlacementResult, TimedPlacement
from toolchain.report.run_results import RunResults
from toolchain.search import accuracy_control
from toolchain.search.pruning_plan import PruningPlan
from toolchain.search.sensitivity_curves import SensitivityCurve
from toolchain.training.finetune import FinetunedModel

SCHEMA = 2  # 2: verdicts are judged by their interval and carry `samples`; `missed` and `nearest` say what would ship
MAX_NEAREST = 3  # budgets that would ship, named in the notes


def report(results: RunResults) -> dict[str, Any]:
    """Return the whole report; its keys are an interface, new ones may be added."""
    baseline, candidate = BASELINE, results.decision.candidate
    accuracy = results.verified.test[candidate]
    return {
        "schema": SCHEMA,
        "recipe": results.job.recipe.name,
        "target": results.job.target.name,
        "runtime": results.job.target.runtime,
        "domain": results.job.recipe.domain,
        "seed": results.job.recipe.seed,
        "machine": dict(machine.describe(results.job.target.device)),
        "versions": machine.versions(results.job.target),
        "shipped": results.decision.shipped,
        "candidate": candidate,
        "missed": list(results.decision.missed),
        "nearest": files.to_jsonable(results.decision.nearest),
        "variants": [_describe_variant(variant, results) for variant in results.variants],
        "speedup": _speedup_over(results, candidate, baseline),
        "speedup_as_shipped": _speedup_over(results, candidate, results.decision.unpruned),
        "ratios": [
            {"variant": variant.name, **_speedup_over(results, variant.name, other.name)}
            for other in results.variants
            for variant in results.variants
            if variant is not other and other.network == "dense"
        ],
        "accuracy_drop": {"baseline": baseline, **files.to_jsonable(accuracy.drop)},
        "balanced_drop": {"baseline": baseline, **files.to_jsonable(accuracy.balanced_drop)},
        "adapt": finetuning(results.job.recipe, results.dense),
        "onnx_file": results.dense.trained.record.get("onnx_file"),
        "pretrained": results.networks["dense"].trained.record["weights"],
        "selected": results.ranking,
        "reuse": {"used": files.to_jsonable(results.job.recipe.reuse), "advice": files.to_jsonable(results.advice)},
        "layers": _describe_layers(results.plan),
        "fit": files.to_jsonable(results.plan.latency_fit),
        "image_sizes": files.to_jsonable(results.plan.size_trials),
        "dropped": list(results.plan.surgery.dropped),
        "sensitivity": [sensitivity_curve(curve, results.sensitivity.dense) for curve in results.sensitivity.curves]
        if results.sensitivity
        else [],
        "training": _collect_epochs(results),
        "seconds": dict(results.step_seconds),
        "verdicts": files.to_jsonable(results.decision.verdicts),
        "placement": {name: _describe_placement(result) for name, result in results.placements.items()},
        "calibration": {
            network.name: network.quantized.trained.record["starts"]
            for network in results.networks.values()
            if network.quantized is not None
        },
        "control": files.to_jsonable(results.control),
        "notes": [
            *results.notes,
            *results.decision.notes,
            *(entry.describe() for entry in results.decision.nearest[:MAX_NEAREST]),
            *quantize.notes(results.networks, results.placements),
            *accuracy_control.notes(results.control, quantize.shipping(results.networks)),
        ],
        "warnings": [
            *results.warnings,
            *warn_of_guessing(results),
            *warn_of_calibration(results),
            *warn_of_licence(results),
        ],
        "data": {
            "digest": results.dataset.digest,
            "images": {split: len(images) for split, images in results.dataset.splits.items()},
            "classes": list(results.dataset.classes),
            "calibration": {
                "images": len(results.dataset.calibration_rows),
                "digest": results.dataset.calibration_digest,
            },
            "skipped": list(results.dataset.skipped_files),
        },
    }


def finetuning(recipe: Recipe, dense: FinetunedModel) -> dict[str, Any]:
    """Return how the dense model was trained; all accuracies are of the validation split."""
    accuracies = [trained.record["best_accuracy"] for trained in dense.seed_runs]
    over_seeds = None
    if len(accuracies) > 1:
        mean, deviation = statistics.mean(accuracies), statistics.stdev(accuracies)
        over_seeds = {"mean": mean, "deviation": deviation, "seeds": len(accuracies)}
    return {
        "balance": recipe.balance,
        "augment": {name: value for name, value in vars(dense.augment).items() if value and name != "auto"},
        "augment_auto": recipe.augment.auto,
        "images_per_class": len(dense.dataset.splits["train"]) / len(dense.dataset.classes),
        "seeds": [
            {
                "seed": trained.record["seed"], "validation": trained.record["best_accuracy"],
                "validation_balanced": trained.record["best_balanced"], "epoch": trained.record["best_epoch"] + 1,
                "chosen": trained.model is dense.trained.model,
            }
            for trained in dense.seed_runs
        ],
        "over_seeds": over_seeds,
        "probe": files.to_jsonable(dense.trained.record["probe"]),
        "teacher": recipe.teacher.name if recipe.teacher else None,
        "joined": files.to_jsonable(dense.join_trials),
    }  # fmt: skip


def _speedup_over(results: RunResults, name: str, baseline: str) -> dict[str, Any]:
    speedup = budget_checks.speedup_over(results.measured, name, baseline)
    return {"baseline": baseline, **files.to_jsonable(speedup)}


def _collect_epochs(results: RunResults) -> dict[str, Any]:
    """Return the epochs of every training step; the last ones are of the pruned network where there is one."""
    smallest, epochs = (
        results.networks[quantize.shipping(results.networks)],
        {"adapt": results.dense.trained.record["history"]},
    )
    if results.ranked is not results.dense.trained:
        epochs["sparsify"] = results.ranked.record["history"]
    if results.pruned.history:
        epochs["prune"] = results.pruned.history
    if len(results.networks) > 1:
        epochs["recover"] = smallest.trained.record["history"]
    if smallest.quantized is not None:
        epochs["quantize"] = smallest.quantized.trained.record["history"]
    return epochs


def warn_of_guessing(results: RunResults) -> list[str]:
    """Warn where the candidate may be no better than always predicting the most frequent class."""
    name = results.decision.candidate
    accuracy = results.verified.test[name].accuracy
    labels = results.dataset.splits["test"].labels
    counts = labels.bincount(minlength=len(results.dataset.classes))
    share, label = float(counts.max()) / len(labels), results.dataset.classes[int(counts.argmax())]
    if accuracy.low > share:
        return []
    return [
        f"{name} may have learnt nothing: it is right on {accuracy.estimate:.1%} [{accuracy.low:.1%}, {accuracy.high:.1%}] "
        f"of the test images, and always predicting {label!r} on {share:.1%}"
    ]


def warn_of_calibration(results: RunResults) -> list[str]:
    """Warn of what is wrong with the calibration of the architecture that is to ship."""
    quantized = results.shipping.quantized
    findings = quantized.trained.record["findings"] if quantized else ()
    # constant channels are left out: nothing prunes them, and they do no harm
    return [f"calibration: {finding['why']}" for finding in findings if finding["kind"] != "constant channels"]


def warn_of_licence(results: RunResults) -> list[str]:
    """Warn where the licence of the model that the ranking chose does not say whether it may be shipped."""
    ranking = results.ranking or {"candidates": [], "chosen": None}
    return [
        f"it is not known whether {candidate['name']} may be shipped (licence: {candidate['licence'] or 'not known'})"
        for candidate in ranking["candidates"]
        if candidate["name"] == ranking["chosen"] and candidate["may_ship"] == "unknown"
    ]


def _describe_placement(result: PlacementResult) -> dict[str, Any]:
    """Return which placements were timed and which was chosen; `speedup` is over f32 in the same process."""
    timed = sorted(result.timed_placements, key=lambda placement: -placement.speedup)
    return {
        "chosen": files.to_jsonable(result.placement),
        "label": result.fastest_int8.label if result.fastest_int8 else None,
        "float_wins": result.float_wins,
        "measured_for": result.measured_for or None,
        "seconds": result.search_seconds,
        "tried": [_describe_timed_placement(placement) for placement in timed],
    }


def _describe_timed_placement(placement: TimedPlacement) -> dict[str, Any]:
    return {
        "label": placement.label,
        "precision": placement.precision,
        "speedup": placement.speedup,
        "latency_ms": placement.latency_ms,
    }


def _describe_layers(plan: PruningPlan) -> list[dict[str, Any]]:
    after = {layer.name: (layer.outputs, layer.macs) for layer in plan.layers_after}
    return [
        {"name": layer.name, "before": layer.outputs, "after": outputs, "macs_before": layer.macs, "macs_after": macs}
        for layer in plan.layers_before
        for outputs, macs in [after.get(layer.name, (0, 0))]  # a layer of a dropped block is gone
    ]


def sensitivity_curve(curve: SensitivityCurve, dense: Interval) -> dict[str, Any]:
    """Return how much accuracy one pruning group or block costs; the first entry of every list is the dense model.

    Args:
        curve: what was measured with this group or block alone cut.
        dense: accuracy of the dense model on the same validation images.
    """
    points = curve.points
    accuracies = [dense, *(point.accuracy for point in points)] if points else []
    no_drop = Interval(estimate=0.0, low=0.0, high=0.0, samples=dense.samples)
    return {
        "name": curve.name,
        "kind": curve.kind,
        "channels": curve.channels,
        "layers": list(curve.layers),
        "shares": [0.0, *(point.share for point in points)] if points else [],
        "accuracies": [accuracy.estimate for accuracy in accuracies],
        "low": [accuracy.low for accuracy in accuracies],
        "high": [accuracy.high for accuracy in accuracies],
        "drops": files.to_jsonable([no_drop, *(point.drop for point in points)] if points else []),
        "cut": curve.cut,
        "why": curve.why or None,
        "images": dense.samples,
        "split": "val",
    }


def _describe_variant(variant: Variant, results: RunResults) -> dict[str, Any]:
    tested, timed = results.verified.test[variant.name], results.measured.get(variant.name)
    return {
        "name": variant.name,
        "shipped": variant.name == results.decision.shipped,
        "precision": variant.precision,
        "image_size": list(variant.image_size),
        "method": variant.method,
        **_bounds("accuracy", tested.accuracy),
        **_bounds("balanced", tested.balanced),
        "balanced_accuracy": tested.balanced.estimate,
        "drop": files.to_jsonable(tested.drop),
        "balanced_drop": files.to_jsonable(tested.balanced_drop),
        "images": tested.accuracy.samples,
        "split": "test",
        "latency_ms": timed and _describe_latency(timed),
        "threads": results.job.target.threads,
        "size_bytes": variant.artefact.size_bytes,
        "peak_rss_bytes": timed and timed.peak_rss_bytes,
        "load_ms": timed and timed.load_ms,
        "first_ms": timed and timed.first_ms,
        "macs": variant.macs,
        "parameters": variant.parameters,
        "integer_coverage": files.to_jsonable(tested.coverage),
        "peak_share": timed and timed.peak_share,
        "parity": files.to_jsonable(tested.parity),
        "export": variant.onnx_path.parent.name,  # folder of the exported graph, which `toolchain parity` reads
    }


def _bounds(name: str, interval: Interval) -> dict[str, float]:
    return {name: interval.estimate, f"{name}_low": interval.low, f"{name}_high": interval.high}


def _describe_latency(timed: LatencyMeasurement) -> dict[str, Any]:
    return {
        "p50": timed.p50_ms.estimate,
        "low": timed.p50_ms.low,
        "high": timed.p50_ms.high,
        "p90": percentile(timed.latencies_ms, 90),
        "p99": percentile(timed.latencies_ms, 99),
        "samples": len(timed.latencies_ms),
    }


def measurements(results: RunResults) -> dict[str, Any]:
    """Return what depends on the day, and so stays outside the archive: every raw sample, the machine, the time."""
    return {
        "schema": SCHEMA,
        "measured_at": files.utc_now(),
        "machine": dict(machine.describe(results.job.target.device)),
        "versions": machine.versions(results.job.target),
        "threads": results.job.target.threads,
        "seconds": dict(results.step_seconds),
        "variants": {name: files.to_jsonable(timed) for name, timed in results.measured.items()},
        "data": files.to_jsonable(results.data_source),
    }
