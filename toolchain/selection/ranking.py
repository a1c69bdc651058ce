"""What `select` found, as tables, and which candidate follows from it: plain data, read from its JSON too."""

from collections.abc import Mapping
from typing import Any

from toolchain.core.errors import ToolchainError
from toolchain.core.types import JsonObject


def read_latency_ms(row: JsonObject) -> float | None:
    """Milliseconds in the form in which it would ship; None where it was not timed."""
    return row["latency_ms"][row["fastest"]]["estimate"] if row["fastest"] else None


def pick_best(found: Mapping[str, Any]) -> tuple[JsonObject, str]:
    """The best that may be shipped, and why; where nothing may, the best of all."""
    good = [row for row in found["candidates"] if not row["error"]]
    row = next((row for row in good if row["may_ship"] != "no"), good[0])
    shared = "" if row is good[0] else " of those that may be shipped"
    closed = "; none may be shipped" if row["may_ship"] == "no" else ""
    return row, f"the best {found['score']} score{shared}, {row['scores'][found['score']]:.3f}{closed}"


def pick_within_latency(found: Mapping[str, Any], limit_ms: float | None) -> tuple[JsonObject, str]:
    """The best that may be shipped and keeps to a latency, and why.

    Raises:
        ToolchainError: none may be shipped, none keeps to it, or nothing was timed while a latency is asked for.
    """
    row, why = pick_best(found)
    if row["may_ship"] == "no":
        names = ", ".join(row["name"] for row in found["candidates"] if not row["error"])
        raise ToolchainError(f"no candidate may be shipped: {names}; where one is meant all the same, name its model")
    if limit_ms is None:
        return row, why
    front = [row for row in found["candidates"] if row["front"]]
    fits = [row for row in front if (read_latency_ms(row) or 0.0) <= limit_ms]
    if not fits:
        least = min((read_latency_ms(row) or 0.0 for row in front), default=None)
        said = f"the fastest takes {least:.3g} ms" if least else "nothing was timed"
        raise ToolchainError(
            f"no candidate keeps to {limit_ms:.3g} ms before it is pruned: {said}; name faster ones, allow more, or name one "
            "model, which is pruned down to it"
        )
    row = fits[0]
    return row, f"the best {found['score']} score ({row['scores'][found['score']]:.3f}) within {limit_ms:.3g} ms"
