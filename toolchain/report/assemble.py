"""The report as plain data: what DESIGN calls `report.json`, an interface that CI and dashboards read."""

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from toolchain.config.job import Job
from toolchain.config.recipe import Recipe
from toolchain.core import files
from toolchain.core import statistics as stats
from toolchain.core.run_report import BASELINE
from toolchain.core.types import Interval, NetworkName
from toolchain.data.decoded_dataset import Dataset
from toolchain.deploy import bundle
from toolchain.export.export_variants import Variant
from toolchain.export.runtime import load_runtime
from toolchain.gates import ship_decision
from toolchain.measure import machine
from toolchain.measure.accuracy import Verification
from toolchain.measure.latency import LatencyMeasurement
from toolchain.pruning.prune import PrunedModel
from toolchain.quantization import quantize
from toolchain.quantization.placement_result import PlacementResult, TimedPlacement
from toolchain.quantization.quantize import Network
from toolchain.search import accuracy_control
from toolchain.search.accuracy_control import AccuracyControlResult
from toolchain.search.plan import PruningPlan
from toolchain.search.pruning_sensitivity import Sensitivity, SensitivityCurve
from toolchain.selection.reuse_advice import ReuseAdvice
from toolchain.training.finetune import FinetunedModel
from toolchain.training.trained_model import TrainedModel

SCHEMA = 1


@dataclass(frozen=True, kw_only=True)
class RunResults:
    """What the steps of a run gave."""

    job: Job
    ranking: Mapping[str, Any] | None  # the candidates, where the recipe leaves the choice of a model open
    dataset: Dataset
    advice: ReuseAdvice | None  # where the recipe leaves open how much of the model is used
    dense: FinetunedModel
    ranked: TrainedModel  # the model whose channels were ranked: the dense one, or its sparsified form
    plan: PruningPlan
    sensitivity: Sensitivity | None
    placements: Mapping[NetworkName, PlacementResult]
    pruned: PrunedModel
    networks: Mapping[NetworkName, Network]
    control: AccuracyControlResult | None
    variants: Sequence[Variant]
    verified: Verification
    measured: Mapping[str, LatencyMeasurement]
    decision: ship_decision.ShipDecision
    warnings: Sequence[str]
    step_seconds: Mapping[str, float]

    @property
    def shipping(self) -> Network:
        """The architecture that is to ship."""
        return self.networks[quantize.shipping(self.networks)]

    def shipment(self) -> bundle.Shipment | None:
        """What the bundle is made of; None where nothing ships."""
        name = self.decision.shipped
        if name is None:
            return None
        variant = next(v for v in self.variants if v.name == name)
        return bundle.Shipment(
            variant=variant, predictions=self.verified.predictions[name], data=self.networks[variant.network].dataset,
            surgery=self.pruned.surgery, facts=manifest_facts(self),
        )  # fmt: skip


def report(found: RunResults) -> dict[str, Any]:
    """The whole report."""
    baseline, candidate = BASELINE, found.decision.candidate
    accuracy = found.verified.test[candidate]
    return {
        "schema": SCHEMA,
        "recipe": found.job.recipe.name,
        "target": found.job.target.name,
        "runtime": found.job.target.runtime,
        "domain": found.job.recipe.domain,
        "seed": found.job.recipe.seed,
        "machine": dict(machine.describe(found.job.target.device)),
        "versions": machine.versions(found.job.target),
        "shipped": found.decision.shipped,
        "candidate": candidate,
        "variants": [_variant(v, found) for v in found.variants],
        "speedup": _ratio(found, candidate, baseline),
        "speedup_as_shipped": _ratio(found, candidate, found.decision.unpruned),
        "ratios": [
            {"variant": v.name, **_ratio(found, v.name, base.name)}
            for base in found.variants
            for v in found.variants
            if v is not base and base.network == "dense"
        ],
        "accuracy_drop": {"baseline": baseline, **files.to_jsonable(accuracy.drop)},
        "balanced_drop": {"baseline": baseline, **files.to_jsonable(accuracy.balanced_drop)},
        "adapt": finetuning(found.job.recipe, found.dense),
        "pretrained": found.networks["dense"].trained.record["weights"],
        "selected": found.ranking,
        "reuse": {"used": files.to_jsonable(found.job.recipe.reuse), "advice": files.to_jsonable(found.advice)},
        "layers": _layers(found.plan),
        "fit": files.to_jsonable(found.plan.latency_fit),
        "image_sizes": files.to_jsonable(found.plan.size_trials),
        "dropped": list(found.plan.surgery.dropped),
        "sensitivity": [sensitivity_curve(one, found.sensitivity.dense) for one in found.sensitivity.curves]
        if found.sensitivity
        else [],
        "training": _trainings(found),
        "seconds": dict(found.step_seconds),
        "verdicts": files.to_jsonable(found.decision.verdicts),
        "placement": {name: _placed(one) for name, one in found.placements.items()},
        "calibration": {
            f.name: f.quantized.trained.record["starts"] for f in found.networks.values() if f.quantized is not None
        },
        "control": files.to_jsonable(found.control),
        "notes": [
            *found.decision.notes,
            *quantize.notes(found.networks, found.placements),
            *accuracy_control.notes(found.control, found.shipping.name),
        ],
        "warnings": [*found.warnings, *_guessing(found), *_calibration(found), *_licence(found)],
        "data": {
            "digest": found.dataset.digest,
            "images": {split: len(images) for split, images in found.dataset.splits.items()},
            "classes": list(found.dataset.classes),
            "calibration": {"images": len(found.dataset.calibration_rows), "digest": found.dataset.calibration_digest},
            "skipped": list(found.dataset.skipped_files),
        },
    }


def finetuning(recipe: Recipe, found: FinetunedModel) -> dict[str, Any]:
    """How the dense model came about; figures are of the validation split."""
    reached = [one.record["best_accuracy"] for one in found.seed_runs]
    return {
        "balance": recipe.balance,
        "augment": {name: value for name, value in vars(found.augment).items() if value and name != "auto"},
        "augment_auto": recipe.augment.auto,
        "images_per_class": len(found.dataset.splits["train"]) / len(found.dataset.classes),
        "seeds": [
            {
                "seed": one.record["seed"], "validation": one.record["best_accuracy"],
                "validation_balanced": one.record["best_balanced"], "epoch": one.record["best_epoch"] + 1,
                "chosen": one is found.trained,
            }
            for one in found.seed_runs
        ],
        "over_seeds": {"mean": statistics.mean(reached), "deviation": statistics.stdev(reached), "seeds": len(reached)}
        if len(reached) > 1
        else None,
        "probe": files.to_jsonable(found.trained.record["probe"]),
        "teacher": recipe.teacher.name if recipe.teacher else None,
        "joined": files.to_jsonable(found.join_trials),
    }  # fmt: skip


def _ratio(found: RunResults, name: str, baseline: str) -> dict[str, Any]:
    return {"baseline": baseline, **files.to_jsonable(ship_decision.speedup_over(found.measured, name, baseline))}


def _trainings(found: RunResults) -> dict[str, Any]:
    """Epochs of every training stage, of all that were needed for what ships."""
    shipped, taught = found.shipping, {"adapt": found.dense.trained.record["history"]}
    if found.ranked is not found.dense.trained:
        taught["sparsify"] = found.ranked.record["history"]
    if found.pruned.history:
        taught["prune"] = found.pruned.history
    if len(found.networks) > 1:
        taught["recover"] = shipped.trained.record["history"]
    if shipped.quantized is not None:
        taught["quantize"] = shipped.quantized.trained.record["history"]
    return taught


def _guessing(found: RunResults) -> list[str]:
    """Said where the best variant may be no better than one answer for all pictures."""
    own = found.verified.test[found.decision.candidate].accuracy
    labels = found.dataset.splits["test"].labels
    counts = labels.bincount(minlength=len(found.dataset.classes))
    share, name = float(counts.max()) / len(labels), found.dataset.classes[int(counts.argmax())]
    if own.low > share:
        return []
    return [
        f"{found.decision.candidate} may have learnt nothing: {own.estimate:.1%} [{own.low:.1%}, {own.high:.1%}] of the test "
        f"pictures are right, and always answering {name!r} gives {share:.1%}"
    ]


def _calibration(found: RunResults) -> list[str]:
    """What is wrong with the calibration of the architecture that is to ship."""
    own = found.shipping.quantized
    return [f"calibration: {one['why']}" for one in own.trained.record["findings"]] if own else []


def _licence(found: RunResults) -> list[str]:
    """Whether it is known that the model may be shipped that the ranking chose."""
    rows = found.ranking["candidates"] if found.ranking else []
    return [
        f"it is not known whether {row['name']} may be shipped (licence: {row['licence'] or 'not known'})"
        for row in rows
        if found.ranking and row["name"] == found.ranking["chosen"] and row["may_ship"] == "unknown"
    ]


def _placed(placed: PlacementResult) -> dict[str, Any]:
    """What the search for the fastest placement tried and chose; `speedup` is over f32 in the same process."""
    return {
        "chosen": files.to_jsonable(placed.placement),
        "label": placed.fastest_int8.label if placed.fastest_int8 else None,
        "float_wins": placed.float_wins,
        "measured_for": placed.measured_for or None,
        "seconds": placed.search_seconds,
        "tried": [_tried(one) for one in sorted(placed.timed_placements, key=lambda one: -one.speedup)],
    }


def _tried(one: TimedPlacement) -> dict[str, Any]:
    return {"label": one.label, "precision": one.precision, "speedup": one.speedup, "latency_ms": one.latency_ms}


def _layers(fit: PruningPlan) -> list[dict[str, Any]]:
    left = {layer.name: (layer.outputs, layer.macs) for layer in fit.layers_after}
    return [
        {"name": b.name, "before": b.outputs, "after": after, "macs_before": b.macs, "macs_after": macs}
        for b in fit.layers_before
        for after, macs in [left.get(b.name, (0, 0))]  # nothing is left of a dropped block
    ]


def sensitivity_curve(found: SensitivityCurve, dense: Interval) -> dict[str, Any]:
    """How much accuracy one group of channels or one block costs; the first entry of every list is the dense model."""
    points = found.points
    every = [dense, *(point.accuracy for point in points)] if points else []
    nothing = Interval(estimate=0.0, low=0.0, high=0.0, samples=dense.samples)
    return {
        "name": found.name,
        "kind": found.kind,
        "channels": found.channels,
        "layers": list(found.layers),
        "shares": [0.0, *(point.share for point in points)] if points else [],
        "accuracies": [one.estimate for one in every],
        "low": [one.low for one in every],
        "high": [one.high for one in every],
        "drops": files.to_jsonable([nothing, *(point.drop for point in points)] if points else []),
        "cut": found.cut,
        "why": found.why or None,
        "images": dense.samples,
        "split": "val",
    }


def _variant(variant: Variant, found: RunResults) -> dict[str, Any]:
    own, timed = found.verified.test[variant.name], found.measured.get(variant.name)
    return {
        "name": variant.name,
        "shipped": variant.name == found.decision.shipped,
        "precision": variant.precision,
        "image_size": list(variant.image_size),
        "method": variant.method,
        **_bounds("accuracy", own.accuracy),
        **_bounds("balanced", own.balanced),
        "balanced_accuracy": own.balanced.estimate,
        "drop": files.to_jsonable(own.drop),
        "balanced_drop": files.to_jsonable(own.balanced_drop),
        "images": own.accuracy.samples,
        "split": "test",
        "latency_ms": timed and _latency(timed),
        "threads": found.job.target.threads,
        "size_bytes": variant.artefact.size_bytes,
        "peak_rss_bytes": timed and timed.peak_rss_bytes,
        "load_ms": timed and timed.load_ms,
        "first_ms": timed and timed.first_ms,
        "macs": variant.macs,
        "parameters": variant.parameters,
        "integer_coverage": files.to_jsonable(own.coverage),
        "peak_share": timed and timed.peak_share,
        "parity": files.to_jsonable(own.parity),
        "export": variant.onnx_path.parent.name,  # the stage that `toolchain parity` looks the graph up in
    }


def _placement(variant: Variant, found: RunResults) -> dict[str, Any]:
    """The placement of the integer form of a variant's architecture; nothing for a float one."""
    family = found.networks[variant.network]
    integer = family.quantized if variant.precision == "int8" else None
    placement: dict[str, Any] = files.to_jsonable(integer.placement) if integer else {}
    return placement


def _bounds(name: str, value: Interval) -> dict[str, float]:
    return {name: value.estimate, f"{name}_low": value.low, f"{name}_high": value.high}


def _latency(timed: LatencyMeasurement) -> dict[str, Any]:
    return {
        "p50": timed.p50_ms.estimate,
        "low": timed.p50_ms.low,
        "high": timed.p50_ms.high,
        "p90": stats.percentile(timed.latencies_ms, 90),
        "p99": stats.percentile(timed.latencies_ms, 99),
        "samples": len(timed.latencies_ms),
    }


def measurements(found: RunResults) -> dict[str, Any]:
    """What depends on the day: every raw sample, the machine, the time. Stays outside the archive."""
    return {
        "schema": SCHEMA,
        "measured_at": files.utc_now(),
        "machine": dict(machine.describe(found.job.target.device)),
        "versions": machine.versions(found.job.target),
        "threads": found.job.target.threads,
        "seconds": dict(found.step_seconds),
        "variants": {name: files.to_jsonable(one) for name, one in found.measured.items()},
    }


def manifest_facts(found: RunResults) -> dict[str, Any]:
    """What the manifest says of the shipped variant: nothing that depends on the day."""
    shipped = found.decision.candidate
    own = found.verified.test[shipped]
    variant = next(v for v in found.variants if v.name == shipped)
    weights = found.networks["dense"].trained.record["weights"]
    return {
        "variant": shipped,
        "release": found.job.recipe.release,
        "recipe": found.job.recipe.name,
        "target": found.job.target.name,
        "runtime": found.job.target.runtime,
        "runtime_version": dict(load_runtime(found.job.target.runtime).fingerprint()),
        "threads": found.job.target.threads,
        "scheme": files.to_jsonable(found.job.target.scheme) if variant.precision == "int8" else None,
        "placement": {"planned": list(variant.planned_layers), **_placement(variant, found)},
        "coverage": files.to_jsonable(own.coverage),
        "accuracy": {
            "accuracy": files.to_jsonable(own.accuracy),
            "balanced": files.to_jsonable(own.balanced),
            "split": "test",
        },
        "accuracy_drop": {"baseline": BASELINE, **files.to_jsonable(own.drop)},
        "isa": machine.isa(),
        "target_isa": found.job.target.isa,
        "provenance": {
            # the digest says which weights; where they lay is nobody's business and would differ between checkouts
            "model": {**files.to_jsonable(found.job.recipe.model), "weights": weights["source"]},
            "reuse": files.to_jsonable(found.job.recipe.reuse),
            "weights": weights["source"],
            "weights_sha256": weights["sha256"],
            "weights_licence": found.job.recipe.model.licence,
            "data_digest": found.dataset.digest,
            "calibration_digest": found.dataset.calibration_digest,
            "data_licence": found.job.domain.licence,
            "seed": found.job.recipe.seed,
            "lock": files.digest(
                found.pruned.surgery, {name: one.placement for name, one in sorted(found.placements.items())}
            ),
            "versions": machine.versions(found.job.target),
        },
    }
