"""advise: pretrained model, domain, target -> how much of the network is worth keeping, before any training.

How much the levels up to a block tell together (`scores/levels.py`) says where to cut, and the same of the network with random
weights where to start anew. A linear probe behind every block is shown beside it and decides nothing: it is behind where
fine-tuning gains most, and weights that it finds no better than random ones were still the better start (docs/results.md).
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
LOGME_TOLERANCE = 0.002  # of LogME on all levels that a cut may cost, against the best depth; measured: docs/results.md
MIN_VALIDATION_IMAGES = 100  # validation images below which nothing is cut: nobody could tell what it cost
FREEZE_BELOW_IMAGES_PER_CLASS = (
    20  # training images a class below which blocks that already tell the classes apart are left as they are
)


@dataclass(frozen=True, kw_only=True)
class DepthAssessment:
    """The network up to a block."""

    block: str
    macs: int  # of the network cut behind it, its new head included
    levels: float  # LogME on the features of all levels up to it
    untrained_levels: float  # the same with random weights
    accuracy: Interval  # of the probe, on validation
    untrained: Interval  # accuracy of the probe on the same network with random weights
    gain: Interval  # of pretraining: accuracy over that, paired


@dataclass(frozen=True, kw_only=True)
class ReuseAdvice:
    """The proposal, with the curves that it follows from."""

    model: str
    reuse: ReuseSpec
    why: tuple[str, ...]  # a sentence for each part of the proposal
    depths: tuple[DepthAssessment, ...]
    speedup: (
        float | None
    )  # of the cut network over the whole one, untrained, both in their faster form; None: not timed
    per_class: float  # training images


def resolve_auto_reuse(job: Job, data: Dataset, *, timed: bool = True) -> tuple[Job, ReuseAdvice | None]:
    """The job with `reuse = "auto"` replaced by what is advised, and the advice.

    Args:
        timed: whether the cut network is timed against the whole one on the job's target.

    Raises:
        ToolchainError: as `run`.
    """
    recipe = job.recipe
    if recipe.reuse != "auto":
        return job, None
    found = advise(recipe.model.name, recipe.model, data, job.work, job.target if timed else None)
    return dataclasses.replace(job, recipe=dataclasses.replace(recipe, reuse=found.reuse)), found


def advise(name: str, spec: ModelSpec, data: Dataset, work: Path, target: Target | None = None) -> ReuseAdvice:
    """Looks behind every block. Without depths where there is no telling, so that all of the network is used.

    Args:
        target: where the cut network is timed against the whole one; None: nowhere.

    Raises:
        ToolchainError: as `look` and `clock`, or there are too few images to tell.
    """
    if not spec.weights:
        return _whole(name, data, "it has random weights, which say nothing of what it would learn")
    trained = extract_features.extract(name, spec, data, work)
    if len(trained.blocks) < 2:
        return _whole(name, data, "it is no chain of blocks that could be cut")
    bare = extract_features.extract(f"{name}, random", dataclasses.replace(spec, weights=""), data, work)
    check_scorable(trained.select("train"))
    key = files.digest(VERSION, trained.key, bare.key)
    with stage_cache.open_stage(work, "advise", key) as stage:
        if stage.record is None:
            started = time.monotonic()
            stage = stage_cache.finish(stage, started, {"depths": _depths(name, spec, data, trained, bare)})
        assert stage.record is not None
        depths = tuple(_read(row) for row in stage.record["depths"])
    reuse, why = choose_reuse(depths, _per_class(data), len(data.splits["val"]))
    return ReuseAdvice(
        model=name, reuse=reuse, why=why, depths=depths, speedup=_speedup(spec, data, reuse, target, work),
        per_class=_per_class(data),
    )  # fmt: skip


def _whole(name: str, data: Dataset, why: str) -> ReuseAdvice:
    progress.log(f"advise: {name}: all of it is used: {why}")
    return ReuseAdvice(model=name, reuse=ReuseSpec(), why=(why,), depths=(), speedup=None, per_class=_per_class(data))


def _per_class(data: Dataset) -> float:
    return len(data.splits["train"]) / len(data.classes)


def choose_reuse(depths: Sequence[DepthAssessment], per_class: float, held: int) -> tuple[ReuseSpec, tuple[str, ...]]:
    """Where to cut, what to start anew and what to freeze, each with its reason.

    Args:
        per_class: training images.
        held: validation images.
    """
    best = max(depths, key=lambda one: one.levels)
    keep = next(one for one in depths if one.levels >= best.levels - LOGME_TOLERANCE)
    why = [
        f"the levels up to {keep.block} tell most of the classes (LogME {keep.levels:.3f})"
        if keep is best else
        f"the levels up to {keep.block} tell as much of the classes (LogME {keep.levels:.3f}) as those up to {best.block} "
        f"({best.levels:.3f})"
    ]  # fmt: skip
    if keep is not depths[-1] and held < MIN_VALIDATION_IMAGES:
        keep = depths[-1]
        why = [f"{held} validation images are too few to tell what a cut costs ({MIN_VALIDATION_IMAGES} are enough)"]
    kept = list(depths[: list(depths).index(keep) + 1])
    known = [one.untrained_levels <= one.levels + LOGME_TOLERANCE for one in kept]
    worth = len(known) - next((number for number, good in enumerate(reversed(known)) if good), len(known))
    fresh, freeze = "", ""
    if worth < len(kept):
        fresh = kept[worth].block
        why.append(
            "random weights tell more here than the pretrained ones: only the architecture is taken over"
            if worth == 0 else f"from {fresh} on random weights tell more than the pretrained ones: it starts anew"
        )  # fmt: skip
    if per_class < FREEZE_BELOW_IMAGES_PER_CLASS and worth == len(kept) and len(kept) > 1:
        freeze = kept[-2].block
        why.append(f"with {per_class:.0f} images a class, all up to {freeze} is left as it is")
    whole = keep is depths[-1]
    return ReuseSpec(keep="" if whole else keep.block, freeze=freeze, fresh=fresh), tuple(why)


def _depths(
    name: str, spec: ModelSpec, data: Dataset, trained: ExtractedFeatures, bare: ExtractedFeatures
) -> list[DepthAssessment]:
    right, plain, macs, told = [], [], list[int](), list[tuple[float, float]]()
    with progress.show_bar(f"advise: {name}", len(trained.blocks)) as bar:
        for block in trained.blocks:
            right.append(_right(trained, block))
            plain.append(_right(bare, block))
            told.append((_told(trained, block), _told(bare, block)))
            cut = build.build_untrained(spec, len(data.classes), ReuseSpec(keep=block))
            macs.append(int(profile.total_macs(profile.measure_layers(cut.eval(), data.example_input))))
            bar.step(f"{block} {right[-1].mean():.3f}")
    return [
        DepthAssessment(
            block=block, macs=count, levels=levels, untrained_levels=other_levels, accuracy=statistics.accuracy(own),
            untrained=statistics.accuracy(other), gain=_gain(other, own),
        )
        for block, count, (levels, other_levels), own, other in zip(trained.blocks, macs, told, right, plain, strict=True)
    ]  # fmt: skip


def _gain(before: np.ndarray, after: np.ndarray) -> Interval:
    lost = statistics.accuracy_drop(before, after)
    return Interval(estimate=-lost.estimate, low=-lost.high, high=-lost.low, samples=lost.samples)


def _told(found: ExtractedFeatures, block: str) -> float:
    seen = found.select("train", block)
    return log_evidence.compute_over_levels(seen.block_features, seen.labels)


def _right(found: ExtractedFeatures, block: str) -> np.ndarray:
    """Which validation images a probe behind `block` gets right, bool [images]."""
    right: np.ndarray = linear_probe.fit_frozen(found.select("train", block), found.select("val", block))[1].numpy()
    return right


def _speedup(spec: ModelSpec, data: Dataset, reuse: ReuseSpec, target: Target | None, work: Path) -> float | None:
    if not reuse.keep or target is None:
        return None
    networks = {
        name: untrained_latency.UntrainedNetwork(
            build.build_untrained(spec, len(data.classes), cut).eval(), data.example_input
        )
        for name, cut in (("whole", ReuseSpec()), ("cut", reuse))
    }
    taken = {name: min((one.estimate for one in found.latencies.values()), default=None)
             for name, found in untrained_latency.time_networks(networks, target, work)[0].items()}  # fmt: skip
    whole, cut = taken.get("whole"), taken.get("cut")
    return whole / cut if whole and cut else None


def _read(row: dict[str, Any]) -> DepthAssessment:
    intervals = {name: Interval(**row[name]) for name in ("accuracy", "untrained", "gain")}
    return DepthAssessment(
        block=row["block"],
        macs=row["macs"],
        levels=row["levels"],
        untrained_levels=row["untrained_levels"],
        **intervals,
    )
