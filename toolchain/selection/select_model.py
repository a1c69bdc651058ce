"""`toolchain select`: which pretrained model suits a domain, beside what it costs on the target and whether it may ship.

Scores say how well a model would transfer, before any training; untrained copies say how long it takes. The front is what
no other candidate beats in both.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from toolchain.config import budget_limits
from toolchain.config.dataset import Domain
from toolchain.config.job import Job
from toolchain.config.recipe import ReuseSpec
from toolchain.config.shortlist import Candidate, is_auto
from toolchain.config.target import Target
from toolchain.core import files, progress, statistics
from toolchain.core.errors import ToolchainError
from toolchain.core.types import Preprocessing
from toolchain.data import decoded_dataset
from toolchain.data.decoded_dataset import Dataset
from toolchain.measure import machine, untrained_latency
from toolchain.measure.untrained_latency import UntrainedLatency, UntrainedNetwork
from toolchain.models import build
from toolchain.selection import candidates, extract_features, ranking, reuse_advice, transfer_scores
from toolchain.selection.extract_features import HEAD_INPUT

SCHEMA = 1
RANKING_SCORE = "levels"  # what is ranked by; why: docs/results.md
SCORE_WITH_INTERVAL = "probe"  # the score that is a share of images, and so has an interval
MIN_IMAGES_PER_CLASS = 2  # training images of a class
MAX_NAMED_FILES = 5  # names of pictures that are left out
FEW_IMAGES_PER_CLASS = 10  # training images a class below which scores say little
Row = dict[str, Any]


def resolve_auto_model(job: Job) -> tuple[Job, Mapping[str, Any] | None]:
    """The job with `model.name = "auto"` replaced by the best candidate that the latency budget allows, and the ranking.

    "auto:small,zoo:squeezenet1_1_glyphs" says which candidates.

    Raises:
        ToolchainError: as `run`; or no candidate may be shipped or keeps to the budget.
    """
    recipe, limit_text = job.recipe, job.budget.latency
    if not is_auto(recipe.model.name):
        return job, None
    _, given, names = recipe.model.name.partition(":")
    found = candidates.resolve([name.strip() for name in (names if given else candidates.DEFAULT_SHORTLIST).split(",")])
    written = rank_candidates(job.domain, job.target, found, recipe.image_size, job.out)
    limit = budget_limits.parse("latency", limit_text) if limit_text else None
    row, why = ranking.pick_within_latency(written, limit.value if limit and not limit.relative else None)
    progress.log(f"select: {row['name']}: {why}")
    taken = next(one for one in found if one.name == row["name"])
    reuse = taken.reuse if recipe.reuse == ReuseSpec() else recipe.reuse
    recipe = dataclasses.replace(recipe, model=taken.model, reuse=reuse)
    return dataclasses.replace(job, recipe=recipe), {**written, "chosen": row["name"], "why": why}


def rank_candidates(
    domain: Domain,
    target: Target,
    found: Sequence[Candidate],
    size: tuple[int, int] | None,
    out: Path,
    *,
    layers: bool = False,
) -> Row:
    """Scores and times all candidates; returns the report, best first.

    A candidate that cannot be had does not stop the others: its row says why.

    Args:
        size: height and width of the pictures; None: the domain's.
        layers: whether to look behind every block of the first one, for how much of it is worth keeping.

    Raises:
        ToolchainError: the images are wrong or of one class, the runtime is missing, or no candidate is left.
    """
    torch.set_flush_denormal(True)
    shown = Preprocessing(image_size=size or domain.image_size, mode=domain.mode, mean=(0.5,) * 3, std=(0.5,) * 3)
    data, work = decoded_dataset.load(domain, shown, out / "data"), out / "work"
    _check(data)
    networks = dict[str, UntrainedNetwork]()
    rows = [_row(one, data, work, networks) for one in found]
    clocked, refused = untrained_latency.time_networks(networks, target, work)
    for row in rows:
        row["error"] = row["error"] or refused.get(row["name"], "")
        row |= _costs(clocked[row["name"]]) if row["name"] in clocked else {}
    if all(row["error"] for row in rows):
        raise ToolchainError(f"no candidate is left: {rows[0]['name']}: {rows[0]['error']}")
    _rank(rows)
    rows.sort(key=lambda row: (row["rank"] is None, row["rank"]))
    written: Row = {
        "schema": SCHEMA, "domain": domain.name, "target": target.name, "runtime": target.runtime, "score": RANKING_SCORE,
        "image_size": list(shown.image_size), "machine": machine.describe(target.device),
        "versions": machine.versions(target),
        "images": {split: min(len(part), extract_features.MAX_IMAGES_PER_SPLIT) for split, part in data.splits.items() if split != "test"},
        "classes": len(data.classes), "warnings": _warnings(data, rows, target),
        "candidates": rows, "advice": None,
    }  # fmt: skip
    if layers:
        first = next(one for one in found if one.name == ranking.pick_best(written)[0]["name"])
        written["advice"] = files.to_jsonable(reuse_advice.advise(first.name, first.model, data, work, target))
    return written


def _check(data: Dataset) -> None:
    """Whether there is something to tell apart.

    Raises:
        ToolchainError: a class has too few training images.
    """
    counts = torch.bincount(data.splits["train"].labels, minlength=len(data.classes)).tolist()
    few = [
        f"{name} ({count})" for name, count in zip(data.classes, counts, strict=True) if count < MIN_IMAGES_PER_CLASS
    ]
    if few or len(data.classes) < 2:
        raise ToolchainError(
            f"a score needs two classes with {MIN_IMAGES_PER_CLASS} training images each; too few have: {', '.join(few) or 'one class only'}"
        )


def _row(one: Candidate, data: Dataset, work: Path, networks: dict[str, UntrainedNetwork]) -> Row:
    """What is known of a candidate without timing it; what is to be timed is added to `networks`."""
    row: Row = {
        "name": one.name, "model": files.to_jsonable(one.model), "reuse": files.to_jsonable(one.reuse), "licence": one.model.licence,
        "may_ship": one.may_ship, "trained_on": one.trained_on, "weights": None, "scores": {}, "bounds": {}, "latency_ms": {},
        "size_bytes": {}, "fastest": None, "macs": None, "parameters": None, "rank": None, "front": False, "error": "",
    }  # fmt: skip
    try:
        # says it before a minute is spent, where there is no such model or block, or it does not take the pictures
        network = UntrainedNetwork(
            build.build_for_image_size(one.model, len(data.classes), data.example_input, one.reuse), data.example_input
        )
        seen = extract_features.extract(one.name, one.model, data, work)
        progress.log(f"score: {one.name}")
        weights = {name: seen.loaded_weights[name] for name in ("source", "sha256", "share")}
        scores = dict(transfer_scores.compute(seen, work, one.reuse.keep or HEAD_INPUT))
        networks[one.name] = network
        return row | {"weights": weights, "scores": scores, "bounds": _bounds(scores, data)}
    except ToolchainError as reason:
        progress.log(f"select: {one.name} is left out: {reason}")
        return row | {"error": str(reason)}


def _bounds(scores: Mapping[str, float], data: Dataset) -> dict[str, Any]:
    """The 95 % interval of the score that is a share of the validation images."""
    images = min(len(data.splits["val"]), extract_features.MAX_IMAGES_PER_SPLIT)
    if SCORE_WITH_INTERVAL not in scores:
        return {}
    right = np.arange(images) < round(scores[SCORE_WITH_INTERVAL] * images)
    return {SCORE_WITH_INTERVAL: files.to_jsonable(statistics.accuracy(right))}


def _costs(found: UntrainedLatency) -> Row:
    return {
        "latency_ms": files.to_jsonable(found.latencies), "size_bytes": dict(found.sizes), "fastest": found.fastest,
        "macs": found.macs, "parameters": found.parameters,
    }  # fmt: skip


def _rank(rows: Sequence[Row]) -> None:
    """Numbers the rows by the score, and marks the front."""
    good = sorted((row for row in rows if not row["error"]), key=_place)
    for number, row in enumerate(good, 1):
        row["rank"] = number
    fastest = float("inf")
    for row in good:  # from the best score down: on the front is what is faster than all before it
        taken = ranking.read_latency_ms(row)
        row["front"] = row["may_ship"] != "no" and (taken is not None and taken < fastest)
        fastest = min(fastest, taken) if row["front"] and taken is not None else fastest


def _place(row: Row) -> tuple[float, bool]:
    """Best first; of two with one score the pretrained one."""
    return -row["scores"][RANKING_SCORE], not row["model"]["weights"]


def _warnings(data: Dataset, rows: Sequence[Row], target: Target) -> list[str]:
    said = []
    counts = torch.bincount(data.splits["train"].labels, minlength=len(data.classes))
    if counts.min() < FEW_IMAGES_PER_CLASS:
        said.append(
            f"{data.classes[int(counts.argmin())]} has {int(counts.min())} training images; scores of so few are guesses"
        )
    first, _ = ranking.pick_best({"score": RANKING_SCORE, "candidates": rows})
    if not first["model"]["weights"]:
        said.append(
            f"{first['name']} comes first with random weights, of which scores know little; try it against the next"
        )
    if not any(row["latency_ms"] for row in rows):
        said.append(f"nothing was timed: this machine lacks the instructions of {target.name} ({target.isa})")
    for answer, text in (("unknown", "it is not known whether they may be shipped"), ("no", "they may not be shipped")):
        if names := [row["name"] for row in rows if row["may_ship"] == answer and not row["error"]]:
            said.append(f"{text}: {', '.join(names)}")
    if data.skipped_files:
        more = (
            f" and {len(data.skipped_files) - MAX_NAMED_FILES} more"
            if len(data.skipped_files) > MAX_NAMED_FILES
            else ""
        )
        said.append(f"unreadable pictures are left out: {', '.join(data.skipped_files[:MAX_NAMED_FILES])}{more}")
    return said
