"""Return the most harmful layers of a quantized model to float, where validation misses the accuracy budget.

Blocks are ranked by how much closer to the dense model each brings the network when it alone is left in float, for the
latency that this costs on the target. The most harmful go first, until validation keeps the budget. The latency budget
stays met, and the result is never slower than the float model.
"""

import dataclasses
import math
import time
from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from toolchain.config.job import Job
from toolchain.core import files, progress, stage_cache
from toolchain.core.types import NetworkName
from toolchain.data.decoded_dataset import Dataset
from toolchain.quantization import float_restorer, fx_graph, placement, quantize
from toolchain.quantization.float_restorer import FloatRestorer
from toolchain.quantization.placement import Placement
from toolchain.quantization.placement_result import PlacementResult
from toolchain.quantization.quantize import Network, QuantizedModel
from toolchain.search import place
from toolchain.search.placement_search import MAX_BLOCKS
from toolchain.training import loop
from toolchain.training.finetune import FinetunedModel

VERSION = 2
MIN_LOG_COST = 0.005  # log of a block's slowdown, at least, so that the weight of a block without cost stays finite


@dataclass(frozen=True)
class BlockSensitivity:
    """The effect of leaving one block in float."""

    block: str
    accuracy: float  # on validation, with this block alone in float
    divergence: float  # nats per image from the dense float model's predictions; less is closer
    slowdown: float | None  # latency relative to the network all in int8; None: not measured
    returned: bool  # whether it stays in float


@dataclass(frozen=True)
class AccuracyControlResult:
    """What accuracy control did."""

    needed: bool  # whether int8 missed the budget
    limit: float | None  # allowed accuracy drop on validation
    before: float | None  # accuracy drop on validation, all of the placement in int8
    after: float | None
    ranking: tuple[BlockSensitivity, ...]  # the most harmful first
    why: str


@dataclass(frozen=True)
class ValidationReference:
    """The dense float model's logits on validation, which quantized models are compared with."""

    dataset: Dataset  # with images of the size that the quantized network takes
    dense_logits: Tensor  # [images, classes]

    @property
    def labels(self) -> Tensor:
        """Labels of the validation images, int64 [images]."""
        return self.dataset.splits["val"].labels

    def accuracy_drop(self, logits: Tensor) -> float:
        """Return the accuracy of the dense model less that of `logits` [images, classes]."""
        dense_correct, correct = self.dense_logits.argmax(1) == self.labels, logits.argmax(1) == self.labels
        return float(dense_correct.float().mean() - correct.float().mean())

    def divergence(self, logits: Tensor) -> float:
        """Return the divergence of `logits` [images, classes] from the dense model's, in nats per image."""
        return quantize.kl_divergence(logits, self.dense_logits)

    def predict(self, restorer: FloatRestorer, chosen: Placement) -> Tensor:
        """Return the logits [images, classes] of a quantized model restricted to a placement."""
        return loop.predict(restorer.restore(chosen), self.dataset.splits["val"], self.dataset.preprocess)


def run(
    job: Job,
    networks: Mapping[NetworkName, Network],
    placed: Mapping[NetworkName, PlacementResult],
    dense: FinetunedModel,
) -> tuple[dict[NetworkName, Network], AccuracyControlResult | None]:
    """Return harmful blocks to float if validation misses the accuracy budget; else change nothing.

    Args:
        job: its `accuracy_drop` budget decides whether, its `speedup` budget how far.
        networks: only the one that is to ship is changed.
        placed: the placement search's timings, which give the cost of each block.
        dense: the dense float model, the accuracy baseline, and its validation images.
    """
    name = quantize.shipping(networks)
    changed, result = _control_network(job, networks[name], dense, placed[name])
    return {**networks, name: changed}, result


def _control_network(
    job: Job, network: Network, dense: FinetunedModel, placed: PlacementResult
) -> tuple[Network, AccuracyControlResult | None]:
    budget, quantized = job.budget, network.quantized
    if quantized is None or budget.accuracy_drop is None or placed.float_wins:
        return network, None
    key = files.digest(
        VERSION, quantized.trained.key, dense.trained.key, quantized.placement, budget.accuracy_drop, budget.speedup,
        placed.key, job.target,
    )  # fmt: skip
    with stage_cache.open_stage(job.work, "control", key) as stage:
        if stage.record is None:
            started = time.monotonic()
            result, chosen = _return_blocks(job, network, quantized, budget.accuracy_drop, dense, placed)
            stage = stage_cache.finish(stage, started, {"found": result, "placement": chosen})
        assert stage.record is not None
    result, chosen = _read_result(stage.record["found"]), place.read_placement(stage.record["placement"])
    if chosen == quantized.placement:
        return network, result
    graph = float_restorer.prepare(network, quantized, job.target.scheme).restore(chosen)
    planned = placement.quantized_layers(fx_graph.list_operations(graph), chosen)
    trained = dataclasses.replace(quantized.trained, model=graph, key=key)
    changed = dataclasses.replace(quantized, trained=trained, placement=chosen, planned_layers=planned)
    return dataclasses.replace(network, quantized=changed), result


def _read_result(row: dict[str, object]) -> AccuracyControlResult:
    blocks = row.pop("ranking")
    assert isinstance(blocks, list)
    return AccuracyControlResult(**row, ranking=tuple(BlockSensitivity(**block) for block in blocks))  # type: ignore[arg-type]


def _return_blocks(
    job: Job, network: Network, quantized: QuantizedModel, limit: float, dense: FinetunedModel, placed: PlacementResult
) -> tuple[AccuracyControlResult, Placement]:
    """Return blocks to float until validation keeps the limit; return what was done and the placement.

    Args:
        job: target, budget and stage cache.
        network: the network that is to ship.
        quantized: its quantized form.
        limit: allowed accuracy drop on validation.
        dense: the dense float model.
        placed: the placement search's timings.
    """
    data = network.dataset
    dense_logits = loop.predict(dense.trained.model, dense.dataset.splits["val"], dense.dataset.preprocess)
    reference = ValidationReference(data, dense_logits)
    before = reference.accuracy_drop(loop.predict(quantized.graph, data.splits["val"], data.preprocess))
    if before <= limit:
        why = "all of the placement in int8 keeps the budget"
        return AccuracyControlResult(False, limit, before, before, (), why), quantized.placement
    progress.log(
        f"control: the accuracy drop on validation is {100 * before:.1f} points, {100 * limit:.1f} are allowed; ranking the "
        "blocks"
    )
    restorer = float_restorer.prepare(network, quantized, job.target.scheme)
    ranking = rank_blocks(restorer, reference, placed)
    chosen, returned, after = quantized.placement, list[str](), before
    with progress.show_bar("control: blocks back to float", len(ranking)) as bar:
        for sensitivity in ranking:
            trial = placement.leave_in_float(chosen, (sensitivity.block,))
            if not placement.quantized_layers(fx_graph.list_operations(quantized.graph), trial):
                break
            chosen, after = trial, reference.accuracy_drop(reference.predict(restorer, trial))
            returned.append(sensitivity.block)
            bar.step(f"accuracy drop {100 * after:.1f} points")
            if after <= limit:
                break
    if after <= limit:
        why, kept = _check_latency(job, network, chosen, placed)
    else:
        why, kept = "the budget is missed even with all of these in float, so all stay in int8", False
    rows = tuple(dataclasses.replace(row, returned=kept and row.block in returned) for row in ranking)
    result = AccuracyControlResult(True, limit, before, after if kept else before, rows, why)
    return result, chosen if kept else quantized.placement


def rank_blocks(
    restorer: FloatRestorer, reference: ValidationReference, placed: PlacementResult
) -> list[BlockSensitivity]:
    """Return the blocks by their gain for their cost when left in float alone, the most harmful first.

    Args:
        restorer: the quantized network, all of its placement in int8.
        reference: what it is compared with.
        placed: gives the slowdown of each block.
    """
    quantized = restorer.quantized
    blocks = placement.split_into_blocks(quantized.planned_layers, MAX_BLOCKS)
    data = reference.dataset
    int8_divergence = reference.divergence(loop.predict(quantized.graph, data.splits["val"], data.preprocess))
    sensitivities = []
    with progress.show_bar("control: sensitivity of each block", len(blocks)) as bar:
        for block in blocks:
            logits = reference.predict(restorer, placement.leave_in_float(quantized.placement, (block,)))
            accuracy = float((logits.argmax(1) == reference.labels).float().mean())
            sensitivities.append(
                BlockSensitivity(block, accuracy, reference.divergence(logits), placed.slowdown(block), False)
            )
            bar.step(block)

    def gain_per_cost(sensitivity: BlockSensitivity) -> float:
        slowdown = sensitivity.slowdown
        cost = max(MIN_LOG_COST, math.log(slowdown) if slowdown else MIN_LOG_COST)
        gain = int8_divergence - sensitivity.divergence
        return gain / cost if gain > 0 else gain

    return sorted(sensitivities, key=gain_per_cost, reverse=True)


def _check_latency(job: Job, network: Network, chosen: Placement, placed: PlacementResult) -> tuple[str, bool]:
    """Return the verdict on the latency with blocks in float, and whether the placement is kept."""
    speedup = place.measure_speedup(network.trained.model, network.dataset.example_input, job.target, chosen, job.work)
    if speedup is None or placed.fastest_float is None:
        return "returned to float by the ranking; the latency was not measured on this machine", True
    float_speedup, limit = placed.fastest_float.speedup, job.budget.speedup
    if speedup <= float_speedup:
        return (
            f"with these in float the speed-up over f32 is {speedup:.2f}x, and float alone reaches {float_speedup:.2f}x: not "
            "worth it",
            False,
        )
    if limit is not None and network.name == "dense" and speedup < limit:
        return f"with these in float the speed-up over f32 is {speedup:.2f}x, below the budget of {limit:.2f}x", False
    return f"speed-up over f32 {speedup:.2f}x, all in int8 {placed.int8_speedup:.2f}x", True


def notes(result: AccuracyControlResult | None, name: str) -> list[str]:
    """Return the notes for the report on what accuracy control did to the network `name`; none if it was not needed."""
    if result is None or not result.needed or result.before is None or result.limit is None or result.after is None:
        return []
    drop = (
        f"{name}: all in int8, the accuracy drop on validation is {100 * result.before:.1f} points "
        f"({100 * result.limit:.1f} allowed)"
    )
    returned = [sensitivity.block for sensitivity in result.ranking if sensitivity.returned]
    if not returned:
        return [f"{drop}; {result.why}"]
    return [f"{drop}; with {', '.join(returned)} in float it is {100 * result.after:.1f} points; {result.why}"]
