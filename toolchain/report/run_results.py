"""What the steps of a run returned, in one value, and what of it the bundle and its manifest hold."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from toolchain.config import model_reference
from toolchain.config.job import Job
from toolchain.config.recipe import ModelSpec
from toolchain.core import files
from toolchain.core.run_report import BASELINE
from toolchain.core.types import NetworkName
from toolchain.data.decoded_dataset import Dataset
from toolchain.deploy import bundle
from toolchain.export.export_variants import Variant
from toolchain.export.runtime import load_runtime
from toolchain.gates.data_source import DataSource
from toolchain.gates.ship_decision import ShipDecision
from toolchain.measure import machine
from toolchain.measure.accuracy import Verification
from toolchain.measure.latency import LatencyMeasurement
from toolchain.pruning.prune import PrunedModel
from toolchain.pruning.surgery import Surgery
from toolchain.quantization.placement_result import PlacementResult
from toolchain.quantization.quantize import Network
from toolchain.search.accuracy_control import AccuracyControlResult
from toolchain.search.pruning_plan import PruningPlan
from toolchain.search.sensitivity_curves import Sensitivity
from toolchain.selection.reuse_advice import ReuseAdvice
from toolchain.training.finetune import FinetunedModel
from toolchain.training.trained_model import TrainedModel


@dataclass(frozen=True, kw_only=True)
class RunResults:
    """What the steps of a run returned."""

    job: Job
    ranking: Mapping[str, Any] | None  # of the candidates; None where the recipe names its model
    dataset: Dataset
    data_source: DataSource  # where its images were when the run began
    advice: ReuseAdvice | None  # None where the recipe says how much of the model is used
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
    decision: ShipDecision
    warnings: Sequence[str]
    step_seconds: Mapping[str, float]
    notes: Sequence[str] = ()  # on the whole run

    @property
    def candidate(self) -> Variant:
        """The variant that ships or, if none does, the best one."""
        return next(variant for variant in self.variants if variant.name == self.decision.candidate)

    @property
    def shipping(self) -> Network:
        """Float and quantized form of the candidate's architecture."""
        return self.networks[self.candidate.network]

    def shipment(self) -> bundle.Shipment:
        """Return what the bundle is made of."""
        return bundle.Shipment(
            variant=self.candidate, predictions=self.verified.predictions[self.candidate.name], data=self.shipping.dataset,
            surgery=self.pruned.surgery if self.candidate.network == "pruned" else Surgery(), facts=manifest_facts(self),
            accepted=self.decision.shipped is not None,
        )  # fmt: skip


def manifest_facts(results: RunResults) -> dict[str, Any]:
    """Return what the manifest says about the shipped variant; nothing in it depends on the day."""
    name = results.decision.candidate
    tested = results.verified.test[name]
    variant = next(variant for variant in results.variants if variant.name == name)
    weights = results.networks["dense"].trained.record["weights"]
    return {
        "variant": name,
        "release": results.job.recipe.release,
        "recipe": results.job.recipe.name,
        "target": results.job.target.name,
        "runtime": results.job.target.runtime,
        "runtime_version": dict(load_runtime(results.job.target.runtime).fingerprint()),
        "threads": results.job.target.threads,
        "scheme": files.to_jsonable(results.job.target.scheme) if variant.precision == "int8" else None,
        "placement": {"planned": list(variant.planned_layers), **_placement_of(variant, results)},
        "coverage": files.to_jsonable(tested.coverage),
        "accuracy": {
            "accuracy": files.to_jsonable(tested.accuracy),
            "balanced": files.to_jsonable(tested.balanced),
            "split": "test",
        },
        "accuracy_drop": {"baseline": BASELINE, **files.to_jsonable(tested.drop)},
        "isa": machine.vector_extensions(),
        "target_isa": results.job.target.isa,
        "provenance": {
            # the digest says which weights they are; their path is private and differs between checkouts
            "model": {
                **_describe_model(results.job.recipe.model),
                "name": model_reference.public_name(results.job.recipe.model.name),
                "weights": weights["source"],
            },
            "reuse": files.to_jsonable(results.job.recipe.reuse),
            "weights": weights["source"],
            "weights_sha256": weights["sha256"],
            "weights_licence": results.job.recipe.model.licence,
            "data_digest": results.dataset.digest,
            "calibration_digest": results.dataset.calibration_digest,
            "data_licence": results.job.domain.licence,
            "seed": results.job.recipe.seed,
            "lock": files.digest(
                results.pruned.surgery,
                {network: result.placement for network, result in sorted(results.placements.items())},
            ),
            "versions": machine.versions(results.job.target),
        },
    }


def _describe_model(model: ModelSpec) -> dict[str, Any]:
    """Return what a recipe says of its model, without the settings that came later and have their default."""
    return {**files.to_jsonable(model, compared=True), "licence": model.licence}


def _placement_of(variant: Variant, results: RunResults) -> dict[str, Any]:
    """Return the Q/DQ placement of an int8 variant; an empty one for a float variant."""
    quantized = results.networks[variant.network].quantized if variant.precision == "int8" else None
    placement: dict[str, Any] = files.to_jsonable(quantized.placement) if quantized else {}
    return placement
