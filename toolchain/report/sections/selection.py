"""Selection: carried out of a larger module; to be described."""

from collections.abc import Mapping
from typing import Any

from toolchain.report import number_format
from toolchain.report.table import Table
from toolchain.selection.ranking import JsonObject, pick_best

SCORE_TITLES = {
    "levels": "Levels",
    "probe": "Probe",
    "logme": "LogME",
    "hscore": "H-score",
    "leep": "LEEP",
}  # others by their file's name
MAY_SHIP_TEXT = {"yes": "yes", "no": "no", "unknown": "not known"}
RUNTIME_LIBRARIES = ("onnxruntime", "openvino")


def tabulate_ranking(found: JsonObject | None) -> Table:
    """Best first; a star marks the front. No rows where there is no ranking."""
    if found is None:
        return Table(columns=(), rows=())
    names = list_score_names(found)
    rows = tuple(
        (
            row["name"] + (" *" if row["front"] else ""),
            *(_score(name, row) for name in names), _latency(row),
            number_format.count(row["macs"]), _size(row),
            MAY_SHIP_TEXT[row["may_ship"]],
        )
        for row in found["candidates"]
        if not row["error"]
    )  # fmt: skip
    titles = (SCORE_TITLES.get(name, name) for name in names)
    columns = ("Candidate", *titles, "Latency, ms", "MACs", "Size", "May ship")
    return Table(
        columns=columns, rows=rows, optional_columns=(*range(2, 1 + len(names)), len(names) + 2, len(names) + 3)
    )


def list_score_names(found: JsonObject) -> list[str]:
    """The score that is ranked by first."""
    names = {name for row in found["candidates"] for name in row["scores"]}
    return sorted(names, key=lambda name: (name != found["score"], name))


def _score(name: str, row: JsonObject) -> str:
    value, bounds = row["scores"].get(name), row["bounds"].get(name)
    if value is None:
        return number_format.MISSING
    if bounds:
        return number_format.percent(value) + number_format.interval(
            bounds["low"], bounds["high"], number_format.percent
        )
    return number_format.significant(value)


def _latency(row: JsonObject) -> str:
    if not row["fastest"]:
        return number_format.MISSING
    return f"{number_format.with_interval(row['latency_ms'][row['fastest']])} {row['fastest']}"


def _size(row: JsonObject) -> str:
    if row["fastest"]:
        return number_format.byte_size(row["size_bytes"][row["fastest"]])
    return f"{number_format.byte_size(row['size_bytes'].get('f32'))} f32"


def tabulate_origins(found: JsonObject) -> Table:
    """Where the weights come from, and under what licence."""
    rows = tuple(
        (
            row["name"], row["trained_on"] or "not known", _source(row["weights"]), row["licence"] or "not known",
        )
        for row in found["candidates"]
        if not row["error"]
    )  # fmt: skip
    return Table(columns=("Candidate", "Trained on", "Weights", "Licence"), rows=rows, text_columns=(0, 1, 2, 3))


def _source(weights: Mapping[str, Any]) -> str:
    digest = f", sha256 {weights['sha256'][:12]}" if len(weights["sha256"]) == 64 else ""
    return f"{weights['source']}{digest}"


def tabulate_left_out(found: JsonObject | None) -> Table:
    """Candidates that could not be had, and why."""
    rows = tuple((row["name"], row["error"]) for row in (found or {"candidates": ()})["candidates"] if row["error"])
    return Table(columns=("Left out", "Why"), rows=rows, text_columns=(0, 1))


def list_further_tables(found: JsonObject) -> tuple[tuple[str, Table], ...]:
    """What stands below the ranking."""
    return ("Where they come from", tabulate_origins(found)), ("Left out", tabulate_left_out(found))


def summarize(found: JsonObject) -> str:
    """How much stands behind the figures."""
    best, why = pick_best(found)
    name, why = (found["chosen"], found["why"]) if "chosen" in found else (best["name"], why)
    versions = ", ".join(
        f"{name} {version}" for name, version in found["versions"].items() if name in RUNTIME_LIBRARIES
    )
    timed = any(row["fastest"] for row in found["candidates"])
    costs = (
        f"latency and size of untrained copies on {found['target']} ({versions}), the faster of float and integers. * on the "
        "front: no other has a better score and a lower latency"
        if timed
        else "nothing was timed"
    )
    return (
        f"First: {name} ({why}). Scores from {found['images']['train']:,} training and {found['images']['val']:,} "
        f"validation images of {found['domain']} at {number_format.image_size(found['image_size'])}; {costs}"
    )
