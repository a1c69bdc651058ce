"""Advise how much of a pretrained network is worth keeping for a dataset, before any training.

The LogME score of all levels up to a block (`scores/levels.py`) decides where to cut, and the same score with random weights
decides which blocks start from new weights. A linear probe behind every block is shown beside it and decides nothing: it
is low where fine-tuning gains most, and weights that it rates no better than random were still the better start
(docs/results.md).
"""

import dataclasses
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from toolchain.config.job import Job
from toolchain.config.recipe import ModelSpec, ReuseSpec
from toolchain.config.target import Target
from toolchain.core import files, progress, stage_cache, statistics
from toolchain.core.types import Interval
from toolchain.data.decoded_dataset import Dataset
from toolchain.measure import untrained_latency
from toolchain.models import build, profile
from toolchain.models.frozen_features import check_scorable
from toolchain.selection import extract_features, log_evidence
from toolchain.selection.extract_features import ExtractedFeatures
from toolchain.training import linear_probe

VERSION = 3
LOGME_TOLERANCE = 0.002  # that a cut may lose of LogME on all levels; measured in docs/results.md
MIN_VALIDATION_IMAGES = 100  # with fewer nothing is cut, because its cost in accuracy could not be measured
FREEZE_BELOW_IMAGES_PER_CLASS = 20  # training images; with fewer, the blocks before the last kept one are frozen


@dataclass(frozen=True, kw_only=True)
class DepthAssessment:
    """The network up to one block."""

    block: str
    macs: int  # of the network cut after the block, with its new head
    levels: float  # LogME on the features of all levels up to the block
    untrained_levels: float  # the same with random weights
    accuracy: Interval  # of the probe, on validation
    untrained: Interval  # accuracy of the probe on the same network with random weights
    gain: Interval  # of pretraining: `accuracy` less `untrained`, paired


@dataclass(frozen=True, kw_only=True)
class ReuseAdvice:
    """The advice, with the assessments behind it."""

    model: str
    reuse: ReuseSpec
    why: tuple[str, ...]  # a sentence for each part of the advice
    depths: tuple[DepthAssessment, ...]
    speedup: float | None  # of the cut network over the whole, untrained, each in its faster precision; None: not timed
    per_class: float  # training images per class


def resolve_auto_reuse(job: Job, data: Dataset, *, timed: bool = True) -> tuple[Job, ReuseAdvice | None]:
    """Return the job with `reuse = "auto"` replaced by the advice, and the advice.

    Args:
        job: recipe, target and stage cache.
        data: the user's dataset.
        timed: whether the cut network is timed against the whole one on the job's target.

    Raises:
        ToolchainError: as for `advise`.
    """
    recipe = job.recipe
    if recipe.reuse != "auto":
        return job, None
    advice = advise(recipe.model.name, recipe.model, data, job.work, job.target if timed else None)
    return dataclasses.replace(job, recipe=dataclasses.replace(recipe, reuse=advice.reuse)), advice


def advise(name: str, spec: ModelSpec, data: Dataset, work: Path, target: Target | None = None) -> ReuseAdvice:
    """Assess the network up to every block; advise the whole network, without depths, where it cannot be assessed.

    Args:
        name: of the model, for the progress bar and the report.
        spec: the model and its weights.
        data: the user's dataset.
        work: the stage cache.
        target: where the cut network is timed against the whole one; None: not timed.

    Raises:
        ToolchainError: as for `extract_features.extract` and `untrained_latency.time_networks`, or there are too few
            images for a score.
    """
    if not spec.weights:
        return _advise_whole(name, data, "it has random weights, which say nothing of what it would learn")
    trained = extract_features.extract(name, spec, data, work)
    if len(trained.blocks) < 2:
        return _advise_whole(name, data, "it is not a chain of blocks that could be cut")
    untrained = extract_features.extract(f"{name}, random", dataclasses.replace(spec, weights=""), data, work)
    check_scorable(trained.select("train"))
    key = files.digest(VERSION, trained.key, untrained.key)
    with stage_cache.open_stage(work, "advise", key) as stage:
        if stage.record is None:
            started = time.monotonic()
            stage = stage_cache.finish(stage, started, {"depths": _assess_depths(name, spec, data, trained, untrained)})
        assert stage.record is not None
        depths = tuple(_read_depth(row) for row in stage.record["depths"])
    images_per_class = _count_images_per_class(data)
    reuse, why = choose_reuse(depths, images_per_class, len(data.splits["val"]))
    return ReuseAdvice(
        model=name, reuse=reuse, why=why, depths=depths, speedup=_measure_speedup(spec, data, reuse, target, work),
        per_class=images_per_class,
    )  # fmt: skip


def _advise_whole(name: str, data: Dataset, why: str) -> ReuseAdvice:
    progress.log(f"advise: {name}: the whole network is used: {why}")
    return ReuseAdvice(
        model=name, reuse=ReuseSpec(), why=(why,), depths=(), speedup=None, per_class=_count_images_per_class(data)
    )


def _count_images_per_class(data: Dataset) -> float:
    return len(data.splits["train"]) / len(data.classes)


def choose_reuse(
    depths: Sequence[DepthAssessment], images_per_class: float, validation_images: int
) -> tuple[ReuseSpec, tuple[str, ...]]:
    """Return where to cut, which blocks start from new weights and which are frozen, with a reason for each.

    Args:
        depths: of the network up to each block, in order.
        images_per_class: training images per class.
        validation_images: number of validation images.
    """
    best = max(depths, key=lambda depth: depth.levels)
    keep = next(depth for depth in depths if depth.levels >= best.levels - LOGME_TOLERANCE)
    if keep is best:
        why = [f"the levels up to {keep.block} separate the classes best (LogME {keep.levels:.3f})"]
    else:
        why = [
            f"the levels up to {keep.block} separate the classes as well (LogME {keep.levels:.3f}) as those up to "
            f"{best.block} ({best.levels:.3f})"
        ]
    if keep is not depths[-1] and validation_images < MIN_VALIDATION_IMAGES:
        keep = depths[-1]
        why = [
            f"{validation_images} validation images are too few to measure what a cut costs ({MIN_VALIDATION_IMAGES} are "
            "enough)"
        ]
    kept = list(depths[: list(depths).index(keep) + 1])
    useful = [depth.untrained_levels <= depth.levels + LOGME_TOLERANCE for depth in kept]
    # a useful block needs all blocks before it, so only those after the last useful one start anew
    reused = len(useful) - next((number for number, is_useful in enumerate(reversed(useful)) if is_useful), len(useful))
    fresh, freeze = "", ""
    if reused < len(kept):
        fresh = kept[reused].block
        why.append(
            "random weights score higher than the pretrained ones: only the architecture is used"
            if reused == 0
            else f"from {fresh} on random weights score higher than the pretrained ones: these blocks start anew"
        )
    if images_per_class < FREEZE_BELOW_IMAGES_PER_CLASS and reused == len(kept) and len(kept) > 1:
        freeze = kept[-2].block
        why.append(f"with {images_per_class:.0f} training images per class, the blocks up to {freeze} are frozen")
    whole = keep is depths[-1]
    return ReuseSpec(keep="" if whole else keep.block, freeze=freeze, fresh=fresh), tuple(why)


def _assess_depths(
    name: str, spec: ModelSpec, data: Dataset, trained: ExtractedFeatures, untrained: ExtractedFeatures
) -> list[DepthAssessment]:
    depths = []
    with progress.show_bar(f"advise: {name}", len(trained.blocks)) as bar:
        for block in trained.blocks:
            correct, untrained_correct = _probe_correctly(trained, block), _probe_correctly(untrained, block)
            cut = build.build_untrained(spec, len(data.classes), ReuseSpec(keep=block))
            depths.append(
                DepthAssessment(
                    block=block, macs=int(profile.total_macs(profile.measure_layers(cut.eval(), data.example_input))),
                    levels=_score_levels(trained, block), untrained_levels=_score_levels(untrained, block),
                    accuracy=statistics.accuracy(correct), untrained=statistics.accuracy(untrained_correct),
                    gain=_compute_gain(untrained_correct, correct),
                )
            )  # fmt: skip
            bar.step(f"{block} {correct.mean():.3f}")
    return depths


def _compute_gain(before: np.ndarray, after: np.ndarray) -> Interval:
    """Return the accuracy gain from `before` to `after`, both bool [images] over the same images."""
    drop = statistics.accuracy_drop(before, after)
    return Interval(estimate=-drop.estimate, low=-drop.high, high=-drop.low, samples=drop.samples)


def _score_levels(extracted: ExtractedFeatures, block: str) -> float:
    train = extracted.select("train", block)
    return log_evidence.compute_over_levels(train.block_features, train.labels)


def _probe_correctly(extracted: ExtractedFeatures, block: str) -> np.ndarray:
    """Return which validation images a probe behind `block` predicts correctly, bool [images]."""
    _, correct = linear_probe.fit_frozen(extracted.select("train", block), extracted.select("val", block))
    flags: np.ndarray = correct.numpy()
    return flags


def _measure_speedup(
    spec: ModelSpec, data: Dataset, reuse: ReuseSpec, target: Target | None, work: Path
) -> float | None:
    """Return the speed-up of the cut network over the whole one; None where nothing is cut or it cannot be timed."""
    if not reuse.keep or target is None:
        return None
    networks = {
        name: untrained_latency.UntrainedNetwork(
            build.build_untrained(spec, len(data.classes), network_reuse).eval(), data.example_input
        )
        for name, network_reuse in (("whole", ReuseSpec()), ("cut", reuse))
    }
    timed, _ = untrained_latency.time_networks(networks, target, work)
    fastest_ms = {
        name: min((latency.estimate for latency in network.latencies.values()), default=None)
        for name, network in timed.items()
    }
    whole, cut = fastest_ms.get("whole"), fastest_ms.get("cut")
    return whole / cut if whole and cut else None


def _read_depth(row: dict[str, Any]) -> DepthAssessment:
    intervals = {name: Interval(**row[name]) for name in ("accuracy", "untrained", "gain")}
    return DepthAssessment(
        block=row["block"],
        macs=row["macs"],
        levels=row["levels"],
        untrained_levels=row["untrained_levels"],
        **intervals,
    )
