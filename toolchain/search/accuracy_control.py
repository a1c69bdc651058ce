"""control: quantized model, accuracy budget -> the same with its most harmful layers back in float, if that is needed.

Blocks are ranked by what each brings on validation when it alone is left in float; the most harmful ones go first,
weighed against the latency that this costs on the target, until validation keeps the budget. Never beyond the latency
budget, and never slower than the float model.
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
from toolchain.quantization import fx_graph, placement, quantize
from toolchain.quantization.placement import Placement
from toolchain.quantization.placement_result import PlacementResult
from toolchain.quantization.quantize import Network, QuantizedModel, shipping
from toolchain.search import place
from toolchain.search.placement_search import MAX_BLOCKS
from toolchain.training import loop
from toolchain.training.finetune import FinetunedModel

VERSION = 1
MIN_LOG_COST = (
    0.005  # least cost in latency, as a log, so that a block that costs nothing measurable does not weigh infinitely
)


@dataclass(frozen=True)
class BlockSensitivity:
    """What leaving one block in float brings."""

    block: str
    accuracy: float  # on validation, with this block alone in float
    divergence: float  # nats an image from the dense float model's answers; less is closer
    slowdown: float | None  # times as slow as with all in integers, measured; None: not measured
    returned: bool  # whether it stays in float


@dataclass(frozen=True)
class AccuracyControlResult:
    """What accuracy control did."""

    needed: bool  # the budget was missed with all of the placement in integers
    limit: float | None  # accuracy drop allowed on validation
    before: float | None  # accuracy drop on validation, all of the placement in integers
    after: float | None
    ranking: tuple[BlockSensitivity, ...]  # the most harmful first
    why: str


@dataclass(frozen=True)
class _Judge:
    """How far a model's answers on validation are from the dense float model's."""

    data: Dataset  # at the size that the model takes its pictures
    dense: Tensor  # logits [images, classes]

    def drop(self, logits: Tensor) -> float:
        labels = self.data.splits["val"].labels
        return float((self.dense.argmax(1) == labels).float().mean() - (logits.argmax(1) == labels).float().mean())

    def divergence(self, logits: Tensor) -> float:
        return quantize.kl_divergence(logits, self.dense)

    def answers(self, quantized: QuantizedModel, chosen: Placement) -> Tensor:
        """Logits on validation with the rounding of `chosen` alone."""
        return loop.predict(
            fx_graph.restrict_to_placement(quantized.graph, chosen), self.data.splits["val"], self.data.preprocess
        )


def run(
    job: Job,
    networks: Mapping[NetworkName, Network],
    placed: Mapping[NetworkName, PlacementResult],
    dense: FinetunedModel,
) -> tuple[dict[NetworkName, Network], AccuracyControlResult | None]:
    """Return harmful blocks to float where validation says that the accuracy budget is missed; else change nothing.

    Args:
        job: its `accuracy_drop` decides whether, its `speedup` how far.
        networks: the one that is to ship is changed; the others stay as they are.
        placed: what the search measured; gives the cost of each block.
        dense: the dense float model that accuracy is compared with, and its validation images.
    """
    name = shipping(networks)
    changed, control = _one(job, networks[name], dense, placed[name])
    return {**networks, name: changed}, control


def _one(
    job: Job, family: Network, adapted: FinetunedModel, placed: PlacementResult
) -> tuple[Network, AccuracyControlResult | None]:
    budget, target = job.budget, job.target
    own, limit, dense = family.quantized, budget.accuracy_drop, adapted.trained
    if own is None or limit is None or placed.float_wins:
        return family, None
    key = files.digest(VERSION, own.trained.key, dense.key, own.placement, limit, budget.speedup, placed.key, target)
    with stage_cache.open_stage(job.work, "control", key) as stage:
        if stage.record is None:
            started = time.monotonic()
            found, chosen = _controlled(job, family, adapted, placed)
            stage = stage_cache.finish(stage, started, {"found": found, "placement": chosen})
        assert stage.record is not None
    found, chosen = _read(stage.record["found"]), place.read_placement(stage.record["placement"])
    if chosen == own.placement:
        return family, found
    graph = fx_graph.restrict_to_placement(own.graph, chosen)
    planned = placement.quantized_layers(fx_graph.list_operations(graph), chosen)
    trained = dataclasses.replace(own.trained, model=graph, key=key)
    changed = dataclasses.replace(own, trained=trained, placement=chosen, planned_layers=planned)
    return dataclasses.replace(family, quantized=changed), found


def _read(figures: dict[str, object]) -> AccuracyControlResult:
    rows = figures.pop("ranking")
    assert isinstance(rows, list)
    return AccuracyControlResult(**figures, ranking=tuple(BlockSensitivity(**row) for row in rows))  # type: ignore[arg-type]


def _controlled(
    job: Job, family: Network, adapted: FinetunedModel, placed: PlacementResult
) -> tuple[AccuracyControlResult, Placement]:
    own, limit, whole, data = family.quantized, job.budget.accuracy_drop, adapted.dataset, family.dataset
    assert own is not None
    assert limit is not None
    judge = _Judge(data, loop.predict(adapted.trained.model, whole.splits["val"], whole.preprocess))
    before = judge.drop(loop.predict(own.graph, data.splits["val"], data.preprocess))
    if before <= limit:
        return AccuracyControlResult(
            False, limit, before, before, (), "all of the placement keeps the budget"
        ), own.placement
    progress.log(f"control: {100 * before:.1f} points lost on validation, {100 * limit:.1f} allowed; ranking layers")
    ranking = _ranked(own, judge, placed)
    chosen, names, after = own.placement, list[str](), before
    with progress.show_bar("control: layers back to float", len(ranking)) as bar:
        for one in ranking:
            trial = placement.leave_in_float(chosen, (one.block,))
            if not placement.quantized_layers(fx_graph.list_operations(own.graph), trial):
                break
            chosen, after = trial, judge.drop(judge.answers(own, trial))
            names.append(one.block)
            bar.step(f"{100 * after:.1f} points lost")
            if after <= limit:
                break
    why, kept = _affordable(job, family, chosen, placed) if after <= limit else (
        "not even with all of these in float is the budget kept; all stay in integers", False
    )  # fmt: skip
    rows = tuple(dataclasses.replace(one, returned=kept and one.block in names) for one in ranking)
    found = AccuracyControlResult(True, limit, before, after if kept else before, rows, why)
    return found, chosen if kept else own.placement


def _ranked(own: QuantizedModel, judge: _Judge, placed: PlacementResult) -> list[BlockSensitivity]:
    """Blocks by what they bring for what they cost, the most harmful first."""
    blocks = placement.split_into_blocks(own.planned_layers, MAX_BLOCKS)
    base = judge.divergence(loop.predict(own.graph, judge.data.splits["val"], judge.data.preprocess))
    found = []
    with progress.show_bar("control: sensitivity of each block", len(blocks)) as bar:
        for block in blocks:
            logits = judge.answers(own, placement.leave_in_float(own.placement, (block,)))
            accuracy = float((logits.argmax(1) == judge.data.splits["val"].labels).float().mean())
            found.append(BlockSensitivity(block, accuracy, judge.divergence(logits), placed.slowdown(block), False))
            bar.step(block)

    def worth(one: BlockSensitivity) -> float:
        cost = max(MIN_LOG_COST, math.log(one.slowdown) if one.slowdown else MIN_LOG_COST)
        gain = base - one.divergence
        return gain / cost if gain > 0 else gain

    return sorted(found, key=worth, reverse=True)


def _affordable(job: Job, family: Network, chosen: Placement, placed: PlacementResult) -> tuple[str, bool]:
    """Whether the placement with less in integers is still fast enough, measured."""
    speed = place.measure_speedup(family.trained.model, family.dataset.example_input, job.target, chosen, job.work)
    if speed is None or placed.fastest_float is None:
        return "returned to float by the ranking; latency was not measured on this machine", True
    floor = placed.fastest_float.speedup
    if speed <= floor:
        return (
            f"with these in float it would be {speed:.2f}x as fast as f32 and {floor:.2f}x is float's own: not worth it",
            False,
        )
    budget = job.budget
    if budget.speedup is not None and family.name == "dense" and speed < budget.speedup:
        return f"with these in float only {speed:.2f}x is left of the {budget.speedup:.2f}x asked for", False
    return (
        f"{speed:.2f}x as fast as the same network in f32, where all in integers was {placed.int8_speedup:.2f}x",
        True,
    )


def notes(found: AccuracyControlResult | None, name: str) -> list[str]:
    """What a reader must know of it."""
    if found is None or not found.needed or found.before is None or found.limit is None or found.after is None:
        return []
    lost = (
        f"{name}: in integers {100 * found.before:.1f} points were lost on validation ({100 * found.limit:.1f} allowed)"
    )
    returned = [one.block for one in found.ranking if one.returned]
    if not returned:
        return [f"{lost}; {found.why}"]
    return [f"{lost}; {', '.join(returned)} went back to float: {100 * found.after:.1f} points lost, {found.why}"]
