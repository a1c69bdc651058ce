"""`toolchain select`: which pretrained model suits a domain, beside what it costs on the target and whether it may ship.

Scores say how well a model would transfer, before any training; untrained copies say how long it takes. The front is what
no other candidate beats in both.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from toolchain import data as images
from toolchain import machine, models, progress, records
from toolchain.data import Dataset
from toolchain.errors import ToolchainError
from toolchain.seen import enough
from toolchain.shortlist import Candidate
from toolchain.stages import clock, look, score
from toolchain.stages.clock import Clocked, Network
from toolchain.stages.look import HEAD
from toolchain.values import Domain, Preprocess, Target

SCHEMA = 1
SCORE = "probe"  # what is ranked by; why: docs/results.md
FEW = 10  # training images a class below which scores say little
Row = dict[str, Any]


def run(domain: Domain, target: Target, found: Sequence[Candidate], size: tuple[int, int] | None, out: Path) -> Row:
    """Scores and times all candidates; returns the report, best first.

    A candidate that cannot be had does not stop the others: its row says why.

    Args:
        size: height and width of the pictures; None: the domain's.

    Raises:
        ToolchainError: the images are wrong or of one class, the runtime is missing, or no candidate is left.
    """
    torch.set_flush_denormal(True)
    shown = Preprocess(image_size=size or domain.image_size, mode=domain.mode, mean=(0.5,) * 3, std=(0.5,) * 3)
    data, work = images.load(domain, shown, out / "data"), out / "work"
    rows = [_row(one, data, work) for one in found]
    usable = [(one, row) for one, row in zip(found, rows, strict=True) if not row["error"]]
    clocked, refused = clock.run({one.name: _network(one, data) for one, _ in usable}, target, work)
    for one, row in usable:
        row["error"] = refused.get(one.name, "")
        row |= _costs(clocked[one.name]) if one.name in clocked else {}
    if all(row["error"] for row in rows):
        raise ToolchainError(f"no candidate is left: {rows[0]['name']}: {rows[0]['error']}")
    _rank(rows)
    return {
        "schema": SCHEMA, "domain": domain.name, "target": target.name, "runtime": target.runtime, "score": SCORE,
        "image_size": list(shown.image_size), "machine": machine.describe(target.device),
        "versions": machine.versions(target),
        "images": {split: min(len(part), look.IMAGES) for split, part in data.splits.items() if split != "test"},
        "classes": len(data.classes), "warnings": _warnings(data, rows, target),
        "candidates": sorted(rows, key=lambda row: (row["rank"] is None, row["rank"])),
    }  # fmt: skip


def _row(one: Candidate, data: Dataset, work: Path) -> Row:
    """What is known of a candidate without timing it."""
    row: Row = {
        "name": one.name, "model": records.plain(one.model), "reuse": records.plain(one.reuse), "licence": one.model.licence,
        "may_ship": one.may_ship, "trained_on": one.trained_on, "weights": None, "scores": {}, "latency_ms": {},
        "size_bytes": {}, "fastest": None, "macs": None, "parameters": None, "rank": None, "front": False, "error": "",
    }  # fmt: skip
    try:
        seen = look.run(one.name, one.model, data, work)
        progress.say(f"score: {one.name}")
        enough(seen.seen("train"))
        weights = {name: seen.weights[name] for name in ("source", "sha256", "share")}
        return row | {"weights": weights, "scores": dict(score.run(seen, work, one.reuse.keep or HEAD))}
    except ToolchainError as reason:
        progress.say(f"select: {one.name} is left out: {reason}")
        return row | {"error": str(reason)}


def _network(one: Candidate, data: Dataset) -> Network:
    model = models.architecture(dataclasses.replace(one.model, weights=""), len(data.classes), one.reuse).eval()
    return Network(model, data.example)


def _costs(found: Clocked) -> Row:
    return {
        "latency_ms": records.plain(found.latencies), "size_bytes": dict(found.sizes), "fastest": found.fastest,
        "macs": found.macs, "parameters": found.parameters,
    }  # fmt: skip


def latency(row: Mapping[str, Any]) -> float | None:
    """Milliseconds in the form in which it would ship; None where it was not timed."""
    return row["latency_ms"][row["fastest"]]["estimate"] if row["fastest"] else None


def _rank(rows: Sequence[Row]) -> None:
    """Numbers the rows by the score, and marks the front."""
    good = sorted((row for row in rows if not row["error"]), key=lambda row: -row["scores"][SCORE])
    for number, row in enumerate(good, 1):
        row["rank"] = number
    fastest = float("inf")
    for row in good:  # from the best score down: on the front is what is faster than all before it
        taken = latency(row)
        row["front"] = row["may_ship"] != "no" and (taken is not None and taken < fastest)
        fastest = min(fastest, taken) if row["front"] and taken is not None else fastest


def chosen(found: Mapping[str, Any], limit_ms: float | None) -> tuple[Row, str]:
    """The best of the front that keeps to a latency, and why.

    Raises:
        ToolchainError: none does, or nothing was timed while a latency is asked for.
    """
    front = [row for row in found["candidates"] if row["front"]]
    if limit_ms is None:
        row = front[0] if front else found["candidates"][0]
        return row, f"the best {found['score']} score, {row['scores'][found['score']]:.3f}"
    fits = [row for row in front if (latency(row) or 0.0) <= limit_ms]
    if not fits:
        least = min((latency(row) or 0.0 for row in front), default=None)
        said = f"the fastest takes {least:.3g} ms" if least else "nothing was timed"
        raise ToolchainError(f"no candidate keeps to {limit_ms:.3g} ms: {said}; name faster ones, or allow more")
    row = fits[0]
    return row, f"the best {found['score']} score ({row['scores'][found['score']]:.3f}) within {limit_ms:.3g} ms"


def _warnings(data: Dataset, rows: Sequence[Row], target: Target) -> list[str]:
    said = []
    counts = torch.bincount(data.splits["train"].labels, minlength=len(data.classes))
    if counts.min() < FEW:
        said.append(
            f"{data.classes[int(counts.argmin())]} has {int(counts.min())} training images; scores of so few are guesses"
        )
    if not any(row["latency_ms"] for row in rows):
        said.append(f"nothing was timed: this machine lacks the instructions of {target.name} ({target.isa})")
    for answer, text in (("unknown", "it is not known whether they may be shipped"), ("no", "they may not be shipped")):
        if names := [row["name"] for row in rows if row["may_ship"] == answer]:
            said.append(f"{text}: {', '.join(names)}")
    return said
