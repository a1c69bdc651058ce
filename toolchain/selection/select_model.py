"""Rank pretrained models for a dataset: transferability beside latency on the target, size and licence; no training.

Scores predict how well a model would transfer, untrained copies give its latency. The Pareto front holds the candidates
that no other one beats in both.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from toolchain.config import budget_limits
from toolchain.config.dataset import Domain
from toolchain.config.job import Job
from toolchain.config.recipe import ModelSpec, ReuseSpec
from toolchain.config.shortlist import Candidate, is_auto
from toolchain.config.target import Target
from toolchain.core import files, progress, statistics
from toolchain.core.errors import ToolchainError
from toolchain.core.types import Preprocessing
from toolchain.data import decoded_dataset, prepare
from toolchain.data.decoded_dataset import Dataset
from toolchain.measure import machine, untrained_latency
from toolchain.measure.untrained_latency import UntrainedLatency, UntrainedNetwork
from toolchain.models import build
from toolchain.selection import candidates, extract_features, ranking, reuse_advice, transfer_scores

SCHEMA = 1
RANKING_SCORE = "levels"  # the score that decides the ranking; docs/results.md says why
SCORE_WITH_INTERVAL = "probe"  # the score that is a share of images, and therefore has an interval
MIN_IMAGES_PER_CLASS = 2  # training images; with fewer, no score can be computed
FEW_IMAGES_PER_CLASS = 10  # training images; with fewer, scores are unreliable
MAX_NAMED_FILES = 5  # unreadable files that a warning names


def resolve_auto_model(job: Job) -> tuple[Job, Mapping[str, Any] | None]:
    """Return the job with `model.name = "auto"` replaced by the best candidate within the latency budget, and the ranking.

    "auto:small,zoo:squeezenet1_1_glyphs" names the candidates.

    Raises:
        ToolchainError: as for `rank_candidates`, or no candidate may be shipped or is within the budget.
    """
    recipe, latency_budget = job.recipe, job.budget.latency
    if not is_auto(recipe.model.name):
        return job, None
    _, separator, names = recipe.model.name.partition(":")
    names = names if separator else candidates.DEFAULT_SHORTLIST
    resolved = candidates.resolve([name.strip() for name in names.split(",")])
    ranked = rank_candidates(job.domain, job.target, resolved, recipe.image_size, job.out)
    limit = budget_limits.parse("latency", latency_budget) if latency_budget else None
    row, why = ranking.pick_within_latency(ranked, limit.value if limit and not limit.relative else None)
    progress.log(f"select: {row['name']}: {why}")
    chosen = next(candidate for candidate in resolved if candidate.name == row["name"])
    reuse = chosen.reuse if recipe.reuse == ReuseSpec() else recipe.reuse
    recipe = dataclasses.replace(recipe, model=chosen.model, reuse=reuse)
    return dataclasses.replace(job, recipe=recipe), {**ranked, "chosen": row["name"], "why": why}


def rank_candidates(
    domain: Domain,
    target: Target,
    models: Sequence[Candidate],
    size: tuple[int, int] | None,
    out: Path,
    *,
    layers: bool = False,
) -> dict[str, Any]:
    """Score and time all candidates; return the report, best first.

    A candidate that cannot be loaded or run does not stop the others: its row says why.

    Args:
        domain: the dataset.
        target: where the candidates are timed.
        models: the candidates.
        size: height and width of the images, pixels; None: the dataset's.
        out: for decoded images and the stage cache.
        layers: whether to assess the best candidate block by block, for how much of it is worth keeping.

    Raises:
        ToolchainError: the images are wrong or of one class, the runtime is missing, or every candidate failed.
    """
    torch.set_flush_denormal(True)
    preprocess = Preprocessing(image_size=size or domain.image_size, mode=domain.mode, mean=(0.5,) * 3, std=(0.5,) * 3)
    data, work = decoded_dataset.load(domain, preprocess, out / "data"), out / "work"
    _check_image_counts(data)
    networks = dict[str, UntrainedNetwork]()
    rows = [
        _score_candidate(candidate, partial(_decode_for, candidate.model, data, out / "data"), work, networks)
        for candidate in models
    ]
    latencies, errors = untrained_latency.time_networks(networks, target, work)
    for row in rows:
        row["error"] = row["error"] or errors.get(row["name"], "")
        row |= _list_costs(latencies[row["name"]]) if row["name"] in latencies else {}
    if all(row["error"] for row in rows):
        raise ToolchainError(f"no candidate is left: {rows[0]['name']}: {rows[0]['error']}")
    ranking.assign_ranks(rows, RANKING_SCORE)
    rows.sort(key=lambda row: (row["rank"] is None, row["rank"]))
    images = {
        split: min(len(images), extract_features.MAX_IMAGES_PER_SPLIT)
        for split, images in data.splits.items() if split != "test"
    }  # fmt: skip
    ranked: dict[str, Any] = {
        "schema": SCHEMA, "domain": domain.name, "target": target.name, "runtime": target.runtime, "score": RANKING_SCORE,
        "image_size": list(preprocess.image_size), "machine": machine.describe(target.device),
        "versions": machine.versions(target), "images": images, "classes": len(data.classes),
        "warnings": _list_warnings(data, rows, target), "candidates": rows, "advice": None,
    }  # fmt: skip
    if layers:
        best, _ = ranking.pick_best(ranked)
        candidate = next(candidate for candidate in models if candidate.name == best["name"])
        seen = _decode_for(candidate.model, data, out / "data")
        advice = reuse_advice.advise(candidate.name, candidate.model, seen, work, target)
        ranked["advice"] = files.to_jsonable(advice)
    return ranked


def _check_image_counts(data: Dataset) -> None:
    """Check that there are at least two classes with enough training images.

    Raises:
        ToolchainError: there is one class only, or a class has too few training images.
    """
    counts = _count_training_images(data)
    few = [
        f"{name} ({count})" for name, count in zip(data.classes, counts, strict=True) if count < MIN_IMAGES_PER_CLASS
    ]
    if few or len(data.classes) < 2:
        raise ToolchainError(
            f"a score needs two classes with {MIN_IMAGES_PER_CLASS} training images each; too few have: "
            f"{', '.join(few) or 'one class only'}"
        )


def _count_training_images(data: Dataset) -> list[int]:
    counts: list[int] = torch.bincount(data.splits["train"].labels, minlength=len(data.classes)).tolist()
    return counts


def _decode_for(model: ModelSpec, data: Dataset, cache: Path) -> Dataset:
    """Return the dataset with the pixels that a model expects; its mean and std belong to the model and do not count."""
    described = prepare.describe_pixels(model, data.preprocess.image_size, data.preprocess.mode)
    described = dataclasses.replace(described, mean=data.preprocess.mean, std=data.preprocess.std)
    return data if described == data.preprocess else decoded_dataset.decode_as(data, described, cache)


def _score_candidate(
    candidate: Candidate, decode: Callable[[], Dataset], work: Path, networks: dict[str, UntrainedNetwork]
) -> dict[str, Any]:
    """Return a candidate's row without its costs, and add the network to time to `networks`."""
    row: dict[str, Any] = {
        "name": candidate.name, "model": files.to_jsonable(candidate.model), "reuse": files.to_jsonable(candidate.reuse),
        "licence": candidate.model.licence, "may_ship": candidate.may_ship, "trained_on": candidate.trained_on,
        "weights": None, "scores": {}, "bounds": {}, "latency_ms": {}, "size_bytes": {}, "fastest": None, "macs": None,
        "parameters": None, "rank": None, "front": False, "error": "",
    }  # fmt: skip
    try:
        data = decode()
        # built first, so that a wrong model, block or image size is reported before a minute is spent
        model = build.build_for_image_size(candidate.model, len(data.classes), data.example_input, candidate.reuse)
        network = UntrainedNetwork(model, data.example_input)
        extracted = extract_features.extract(candidate.name, candidate.model, data, work)
        progress.log(f"score: {candidate.name}")
        weights = {name: extracted.loaded_weights[name] for name in ("source", "sha256", "share")}
        block = candidate.reuse.keep or extract_features.HEAD_INPUT
        scores = dict(transfer_scores.compute(extracted, work, block))
    except ToolchainError as reason:
        progress.log(f"select: {candidate.name} is left out: {reason}")
        return row | {"error": str(reason)}
    networks[candidate.name] = network
    return row | {"weights": weights, "scores": scores, "bounds": _compute_intervals(scores, data)}


def _compute_intervals(scores: Mapping[str, float], data: Dataset) -> dict[str, Any]:
    """Return the 95 % interval of the score that is a share of the validation images."""
    images = min(len(data.splits["val"]), extract_features.MAX_IMAGES_PER_SPLIT)
    if SCORE_WITH_INTERVAL not in scores:
        return {}
    share = statistics.share(round(scores[SCORE_WITH_INTERVAL] * images), images)
    return {SCORE_WITH_INTERVAL: files.to_jsonable(share)}


def _list_costs(latency: UntrainedLatency) -> dict[str, Any]:
    return {
        "latency_ms": files.to_jsonable(latency.latencies), "size_bytes": dict(latency.sizes), "fastest": latency.fastest,
        "macs": latency.macs, "parameters": latency.parameters,
    }  # fmt: skip


def _list_warnings(data: Dataset, rows: Sequence[dict[str, Any]], target: Target) -> list[str]:
    warnings = []
    counts = _count_training_images(data)
    fewest = int(np.argmin(counts))
    if counts[fewest] < FEW_IMAGES_PER_CLASS:
        warnings.append(f"{data.classes[fewest]} has {counts[fewest]} training images; scores on so few are unreliable")
    best, _ = ranking.pick_best({"score": RANKING_SCORE, "candidates": rows})
    if not best["model"]["weights"]:
        warnings.append(
            f"{best['name']} comes first with random weights, for which scores are unreliable; compare it with the second "
            "after training"
        )
    if not any(row["latency_ms"] for row in rows):
        warnings.append(f"nothing was timed: this machine lacks the instructions of {target.name} ({target.isa})")
    for may_ship, text in (
        ("unknown", "it is not known whether they may be shipped"),
        ("no", "they may not be shipped"),
    ):
        if names := [row["name"] for row in rows if row["may_ship"] == may_ship and not row["error"]]:
            warnings.append(f"{text}: {', '.join(names)}")
    if data.skipped_files:
        named = ", ".join(data.skipped_files[:MAX_NAMED_FILES])
        further = len(data.skipped_files) - MAX_NAMED_FILES
        warnings.append(f"unreadable images are left out: {named}" + (f" and {further} more" if further > 0 else ""))
    return warnings
