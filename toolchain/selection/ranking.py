"""What `select` found, as tables, and which candidate follows from it: plain data, read from its JSON too."""

from collections.abc import Mapping
from typing import Any

from toolchain import figures
from toolchain.errors import ToolchainError
from toolchain.tables import Table

Report = Mapping[str, Any]
TITLES = {
    "levels": "Levels",
    "probe": "Probe",
    "logme": "LogME",
    "hscore": "H-score",
    "leep": "LEEP",
}  # others by their file's name
SHIPS = {"yes": "yes", "no": "no", "unknown": "not known"}
RUNTIMES = ("onnxruntime", "openvino")


def latency(row: Report) -> float | None:
    """Milliseconds in the form in which it would ship; None where it was not timed."""
    return row["latency_ms"][row["fastest"]]["estimate"] if row["fastest"] else None


def first(found: Mapping[str, Any]) -> tuple[Report, str]:
    """The best that may be shipped, and why; where nothing may, the best of all."""
    good = [row for row in found["candidates"] if not row["error"]]
    row = next((row for row in good if row["may_ship"] != "no"), good[0])
    shared = "" if row is good[0] else " of those that may be shipped"
    closed = "; none may be shipped" if row["may_ship"] == "no" else ""
    return row, f"the best {found['score']} score{shared}, {row['scores'][found['score']]:.3f}{closed}"


def chosen(found: Mapping[str, Any], limit_ms: float | None) -> tuple[Report, str]:
    """The best that may be shipped and keeps to a latency, and why.

    Raises:
        ToolchainError: none may be shipped, none keeps to it, or nothing was timed while a latency is asked for.
    """
    row, why = first(found)
    if row["may_ship"] == "no":
        names = ", ".join(row["name"] for row in found["candidates"] if not row["error"])
        raise ToolchainError(f"no candidate may be shipped: {names}; where one is meant all the same, name its model")
    if limit_ms is None:
        return row, why
    front = [row for row in found["candidates"] if row["front"]]
    fits = [row for row in front if (latency(row) or 0.0) <= limit_ms]
    if not fits:
        least = min((latency(row) or 0.0 for row in front), default=None)
        said = f"the fastest takes {least:.3g} ms" if least else "nothing was timed"
        raise ToolchainError(
            f"no candidate keeps to {limit_ms:.3g} ms before it is pruned: {said}; name faster ones, allow more, or name one "
            "model, which is pruned down to it"
        )
    row = fits[0]
    return row, f"the best {found['score']} score ({row['scores'][found['score']]:.3f}) within {limit_ms:.3g} ms"


def ranking(found: Report | None) -> Table:
    """Best first; a star marks the front. No rows where there is no ranking."""
    if found is None:
        return Table(columns=(), rows=())
    names = score_names(found)
    rows = tuple(
        (
            row["name"] + (" *" if row["front"] else ""),
            *(_score(name, row) for name in names), _latency(row),
            figures.count(row["macs"]), _size(row),
            SHIPS[row["may_ship"]],
        )
        for row in found["candidates"]
        if not row["error"]
    )  # fmt: skip
    titles = (TITLES.get(name, name) for name in names)
    columns = ("Candidate", *titles, "Latency, ms", "MACs", "Size", "May ship")
    return Table(columns=columns, rows=rows, spare=(*range(2, 1 + len(names)), len(names) + 2, len(names) + 3))


def score_names(found: Report) -> list[str]:
    """The score that is ranked by first."""
    names = {name for row in found["candidates"] for name in row["scores"]}
    return sorted(names, key=lambda name: (name != found["score"], name))


def _score(name: str, row: Report) -> str:
    value, bounds = row["scores"].get(name), row["bounds"].get(name)
    if value is None:
        return figures.NONE
    if bounds:
        return figures.percent(value) + figures.interval(bounds["low"], bounds["high"], figures.percent)
    return figures.significant(value)


def _latency(row: Report) -> str:
    if not row["fastest"]:
        return figures.NONE
    return f"{figures.bounded(row['latency_ms'][row['fastest']])} {row['fastest']}"


def _size(row: Report) -> str:
    if row["fastest"]:
        return figures.size(row["size_bytes"][row["fastest"]])
    return f"{figures.size(row['size_bytes'].get('f32'))} f32"


def origins(found: Report) -> Table:
    """Where the weights come from, and under what licence."""
    rows = tuple(
        (
            row["name"], row["trained_on"] or "not known", _source(row["weights"]), row["licence"] or "not known",
        )
        for row in found["candidates"]
        if not row["error"]
    )  # fmt: skip
    return Table(columns=("Candidate", "Trained on", "Weights", "Licence"), rows=rows, prose=(0, 1, 2, 3))


def _source(weights: Mapping[str, Any]) -> str:
    digest = f", sha256 {weights['sha256'][:12]}" if len(weights["sha256"]) == 64 else ""
    return f"{weights['source']}{digest}"


def left_out(found: Report | None) -> Table:
    """Candidates that could not be had, and why."""
    rows = tuple((row["name"], row["error"]) for row in (found or {"candidates": ()})["candidates"] if row["error"])
    return Table(columns=("Left out", "Why"), rows=rows, prose=(0, 1))


def sections(found: Report) -> tuple[tuple[str, Table], ...]:
    """What stands below the ranking."""
    return ("Where they come from", origins(found)), ("Left out", left_out(found))


def summary(found: Report) -> str:
    """How much stands behind the figures."""
    best, why = first(found)
    name, why = (found["chosen"], found["why"]) if "chosen" in found else (best["name"], why)
    versions = ", ".join(f"{name} {version}" for name, version in found["versions"].items() if name in RUNTIMES)
    timed = any(row["fastest"] for row in found["candidates"])
    costs = (
        f"latency and size of untrained copies on {found['target']} ({versions}), the faster of float and integers. * on the "
        "front: no other has a better score and a lower latency"
        if timed
        else "nothing was timed"
    )
    return (
        f"First: {name} ({why}). Scores from {found['images']['train']:,} training and {found['images']['val']:,} "
        f"validation images of {found['domain']} at {figures.sides(found['image_size'])}; {costs}"
    )
